"""What is in a training set and what looks wrong with it, before any time is spent on it."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Sequence

import numpy as np
from ase.data import covalent_radii
from rich.console import Console
from rich.table import Table

from .data import Frame
from .data_batches import Batch
from .data_units import work_of_pairs
from .graph import edge_vectors

LISTED = 10  # frames that are printed one by one
ENERGY_OUTLIER = 4.0  # times the deviation from the median that 95 % of the frames stay below
FORCE_OUTLIER = 20.0  # times the 90th percentile of the components
TOO_CLOSE = 0.6  # times the sum of the covalent radii
LARGE_STRESS = 0.5  # eV/A^3, 80 GPa
NET_FORCE = 0.05  # eV/A per atom


def data_report(
    sets: dict[str, Sequence[Frame]], samples: Sequence[Batch], statistics: dict, notes: Sequence[str] = ()
) -> dict:
    """Counts, ranges, outliers and warnings as a dictionary for JSON.

    Args:
        sets: frames by name: "train", "valid", "test", "isolated"; empty ones are left out.
        samples: the prepared training frames.
        statistics: see train_statistics.statistics.
        notes: remarks of the reader.

    Returns:
        sets: {name: summary}; min_distance: {"Si-Si": A}; outliers: [{frame, reason}]; warnings, notes: [text];
        statistics.
    """
    train = sets["train"]
    distances, close = closest(train, samples)
    outliers = [*energy_outliers(train, statistics), *force_outliers(train), *close]
    return {
        "sets": {name: summary(frames) for name, frames in sets.items() if frames},
        "min_distance": distances,
        "outliers": outliers,
        "warnings": [
            *statistics["warnings"],
            *missing_references(statistics),
            *duplicates(sets),
            *net_force_warning(train),
            *size_warning(train),
            *unit_warnings(train),
            *no_neighbours(train, samples),
        ],
        "notes": list(notes),
        "statistics": statistics,
    }


def _extent(values) -> list[float] | None:
    values = list(values)
    return [float(min(values)), float(max(values))] if values else None


def summary(frames: Sequence[Frame]) -> dict:
    """Sizes, labels and ranges of a set."""
    energy = [f.energy / len(f.atoms) for f in frames if f.energy is not None]
    forces = [f.forces for f in frames if f.forces is not None]
    stress = [f.stress for f in frames if f.stress is not None]
    elements = Counter(symbol for f in frames for symbol in f.atoms.symbols)
    return {
        "frames": len(frames),
        "atoms": sum(len(f.atoms) for f in frames),
        "elements": dict(sorted(elements.items())),
        "config_types": dict(sorted(Counter(f.config_type for f in frames).items())),
        "with_energy": len(energy),
        "with_forces": len(forces),
        "with_stress": len(stress),
        "periodic": sum(bool(f.atoms.pbc.all()) for f in frames),
        "atoms_per_frame": _extent(len(f.atoms) for f in frames),
        "energy_per_atom": _extent(energy),
        "force_rms": float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else None,
        "force_max": float(max(np.abs(f).max() for f in forces)) if forces else None,
        "pressure": _extent(-np.trace(s) / 3 for s in stress),
        "volume_per_atom": _extent(f.atoms.cell.volume / len(f.atoms) for f in frames if f.atoms.pbc.all()),
    }


def closest(frames: Sequence[Frame], samples: Sequence[Batch]) -> tuple[dict[str, float], list[dict]]:
    """(shortest distance of each pair of elements within the cutoff, frames in which atoms nearly touch)."""
    shortest: dict[str, float] = {}
    outliers = []
    for frame, sample in zip(frames, samples):
        graph = sample.graphs[0]
        lengths = edge_vectors(graph, sample.positions).norm(dim=1).numpy()
        if not len(lengths):
            continue
        i, j = graph.edge_index.numpy()
        numbers, symbols = frame.atoms.numbers, frame.atoms.symbols
        for a, b in {tuple(sorted(pair)) for pair in zip(numbers[i].tolist(), numbers[j].tolist())}:
            mask = (numbers[i] == a) & (numbers[j] == b)
            edge = int(np.flatnonzero(mask)[lengths[mask].argmin()])
            name = f"{symbols[i[edge]]}-{symbols[j[edge]]}"
            shortest[name] = min(shortest.get(name, np.inf), float(lengths[edge]))
            if lengths[edge] < TOO_CLOSE * (covalent_radii[a] + covalent_radii[b]):
                reason = f"{name} distance {lengths[edge]:.2f} A (atoms {i[edge]} and {j[edge]})"
                outliers.append({"frame": frame.origin, "reason": reason})
    return dict(sorted(shortest.items())), outliers


def energy_outliers(frames: Sequence[Frame], statistics: dict) -> list[dict]:
    """Frames whose energy per atom, less the reference energies, is 4 times as far from the median as 95 % are."""
    reference = statistics["reference_energies"]
    chosen = [frame for frame in frames if frame.energy is not None]
    if not chosen:
        return []
    values = np.array([(f.energy - sum(reference[s] for s in f.atoms.symbols)) / len(f.atoms) for f in chosen])
    deviation = values - np.median(values)
    usual = max(float(np.percentile(np.abs(deviation), 95, method="lower")), 1e-3)
    return [
        {"frame": frame.origin, "reason": f"energy {d:+.3f} eV/atom from the median, 95 % are within {usual:.3f}"}
        for frame, d in zip(chosen, deviation)
        if abs(d) > ENERGY_OUTLIER * usual
    ]


def force_outliers(frames: Sequence[Frame]) -> list[dict]:
    """Frames with a force component above 20 times the size that 90 % of all components stay below."""
    chosen = [frame for frame in frames if frame.forces is not None]
    if not chosen:
        return []
    usual = float(np.percentile(np.abs(np.concatenate([f.forces for f in chosen])), 90, method="lower"))
    largest = [float(np.abs(f.forces).max()) for f in chosen]
    return [
        {"frame": frame.origin, "reason": f"force component of {value:.1f} eV/A, 90 % of all are below {usual:.2f}"}
        for frame, value in zip(chosen, largest)
        if value > FORCE_OUTLIER * usual
    ]


def missing_references(statistics: dict) -> list[str]:
    """A warning where some elements have an isolated-atom energy and others do not."""
    origin = statistics["reference_energies_from"]
    fitted = [symbol for symbol, text in origin.items() if text == "least squares"]
    if fitted and len(fitted) < len(origin):
        return [f"no reference energy is given for {', '.join(fitted)}, but for other elements: theirs are fitted"]
    return []


def duplicates(sets: dict[str, Sequence[Frame]]) -> list[str]:
    """Structures (same species, positions and cell to 1e-4 A) that stand in two sets, or twice in one."""
    keys = {name: [_key(frame) for frame in frames] for name, frames in sets.items() if name != "isolated"}
    warnings = []
    for name, group in keys.items():
        repeated = len(group) - len(set(group))
        if repeated:
            warnings.append(f"{repeated} structures stand more than once in {name}")
    for a, b in combinations(keys, 2):
        common = set(keys[a]) & set(keys[b])
        if common:
            where = [frame.origin for frame, key in zip(sets[b], keys[b]) if key in common][:3]
            warnings.append(f"{len(common)} structures of {b} stand in {a} too, e.g. {', '.join(where)}")
    return warnings


def _key(frame: Frame) -> bytes:
    atoms = frame.atoms
    rounded = [np.round(x, 4) + 0.0 for x in (atoms.positions, atoms.cell.array)]
    return b"".join([atoms.numbers.tobytes(), atoms.pbc.tobytes(), *(x.tobytes() for x in rounded)])


def net_force_warning(frames: Sequence[Frame]) -> list[str]:
    """A warning where the forces of a frame do not add up to zero, as those of an isolated system must."""
    bad = [
        frame.origin
        for frame in frames
        if frame.forces is not None and np.linalg.norm(frame.forces.sum(0)) > NET_FORCE * len(frame.atoms)
    ]
    if not bad:
        return []
    return [
        f"the forces of {len(bad)} frames do not add up to zero (more than {NET_FORCE} eV/A per atom), e.g. {bad[0]}"
    ]


def size_warning(frames: Sequence[Frame]) -> list[str]:
    """A warning where energies look like energies per atom: equal for structures of different size."""
    groups: dict[tuple, list[Frame]] = {}
    for frame in frames:
        if frame.energy is not None:
            numbers, counts = np.unique(frame.atoms.numbers, return_counts=True)
            groups.setdefault((*numbers, *(counts / np.gcd.reduce(counts))), []).append(frame)
    for group in groups.values():
        sizes = np.array([len(frame.atoms) for frame in group])
        total = np.array([frame.energy for frame in group])
        if len(set(sizes)) > 1 and sizes.max() >= 1.5 * sizes.min():
            if np.std(total) < 0.2 * np.std(total / sizes):
                return [
                    "energies do not grow with the number of atoms: they look like energies per atom, totals are wanted"
                ]
    return []


def unit_warnings(frames: Sequence[Frame]) -> list[str]:
    """Warnings where forces or stresses do not explain the energy differences of similar structures, or are huge."""
    warnings = []
    work = work_of_pairs(frames)
    warnings += work.warnings()
    stress = [frame.stress for frame in frames if frame.stress is not None]
    if stress and not work.knows_stress:
        rms = float(np.sqrt(np.mean(np.square(stress))))
        if rms > LARGE_STRESS:
            warnings.append(f"stresses of {rms:.3g} eV/A^3 (rms) are huge: are they in GPa or kbar?")
    return warnings


def no_neighbours(frames: Sequence[Frame], samples: Sequence[Batch]) -> list[str]:
    """A warning where atoms have no neighbour within the cutoff."""
    alone = sum(int((sample.graphs[0].row_ptr.diff() == 0).sum()) for sample in samples)
    return [f"{alone} atoms of the training set have no neighbour within the cutoff"] if alone else []


def show(report: dict, console: Console) -> None:
    """Prints the report."""
    table = Table("set", "frames", "atoms", "E", "F", "S", "eV/atom", "|F| max eV/A", "A^3/atom", title="data")
    for name, part in report["sets"].items():
        table.add_row(
            name, str(part["frames"]), str(part["atoms"]),
            *(str(part[f"with_{x}"]) for x in ("energy", "forces", "stress")),
            _range(part["energy_per_atom"]), "-" if part["force_max"] is None else f"{part['force_max']:.1f}",
            _range(part["volume_per_atom"]),
        )  # fmt: skip
    console.print(table)
    found = report["statistics"]
    references = ", ".join(
        f"{symbol} {energy:.4f} ({found['reference_energies_from'][symbol].split(',')[0]})"
        for symbol, energy in found["reference_energies"].items()
    )
    distances = ", ".join(f"{pair} {length:.2f}" for pair, length in report["min_distance"].items())
    lines = [
        f"reference energies (eV): {references}",
        f"shortest distances (A): {distances or '-'}; neighbours per atom: {found['avg_num_neighbors']:.1f}",
        *(f"note: {text}" for text in report["notes"][:LISTED]),
        *(f"warning: {text}" for text in report["warnings"]),
        *(f"outlier: {item['frame']}: {item['reason']}" for item in report["outliers"][:LISTED]),
    ]
    if len(report["outliers"]) > LISTED:
        lines.append(f"and {len(report['outliers']) - LISTED} outliers more, see data_report.json")
    for line in lines:
        console.print(
            line, highlight=False, markup=False, style="yellow" if line.startswith(("warning", "outlier")) else None
        )


def _range(extent: list[float] | None) -> str:
    return "-" if extent is None else f"{extent[0]:.3f} .. {extent[1]:.3f}"
