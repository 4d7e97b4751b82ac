"""Looks for holes in an energy surface: where structures that collide or overlap fall instead of being driven apart."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io import write

from .calculator import EquiCalculator
from .evaluate_batches import load_potential
from .potential_file import write_atomic
from .robustness_known import Hole, Known, find_known
from .robustness_scan import HotResult, ScanResult, compress, run_hot, scan_pairs
from .robustness_search import SearchResult, search
from .runfiles import as_atoms


class Report(NamedTuple):
    """What each test found; `holes` are all of them."""

    known: Known
    searches: list[SearchResult]
    scans: list[ScanResult]
    compressions: list[ScanResult]
    hot: list[HotResult]
    holes: list[Hole]


def find_holes(
    model: Any,
    structure: Atoms | str | Path | None = None,
    *,
    n_cells: int = 500,
    sizes: tuple[int, int] = (2, 12),
    temperature: float = 3000.0,
    picoseconds: float = 10.0,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Random structures, pairs, compression and hot dynamics; a sound potential has no hole in any of them.

    Holes are: numbers that are not finite; an energy more than 0.3 eV/atom below that of the relaxed crystal or molecule
    (1.5 eV/atom more for random mixtures of elements); atoms closer than 0.55 of the sum of their covalent radii after
    relaxation; a pair closer than 0.5 of it that attracts; an energy that falls while two free atoms approach below the
    shortest training distance, or while a crystal or molecule is compressed; dynamics that explode.

    Args:
        model: a potential: folder, file, shipped name or Potential.
        structure: a molecule, or None: one that its folder's check.xyz begins with, else crystals of its elements.
        n_cells: random structures for each element, and for mixtures of all; half begin with overlapping atoms.
        sizes: atoms in a random cell; a molecule is taken with all its atoms.
        temperature, picoseconds: of the dynamics.
        seed: of everything random.
        progress: called with what is done, a number and the total of it.
    """
    for name, value, least in (("n_cells", n_cells, 1), ("sizes", min(sizes), 1), ("picoseconds", picoseconds, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; received {value!r}")
    if sizes[0] > sizes[1]:
        raise ValueError(f"sizes must be (least, most); received {sizes!r}")
    tell = progress or (lambda name, done, total: None)
    tell("reference structures", 0, 1)
    ready = load_potential(model, device=device)
    known, found = find_known(model, ready, None if structure is None else as_atoms(structure))
    searches = []
    for name, numbers in _groups(known):
        tell(f"random {name}", 0, 1)
        searches.append(
            search(ready, known, name, numbers, n_cells=n_cells, sizes=sizes, seed=seed,
                   progress=lambda step, name=name: tell(f"random {name}", step, 100))
        )  # fmt: skip
    scans, compressions = scan_pairs(ready, known), compress(ready, known)
    hot: list[HotResult] = []
    if picoseconds > 0:
        calculator = EquiCalculator(model, device=device)
        hot = run_hot(
            ready, known, calculator, temperature=temperature, picoseconds=picoseconds, seed=seed,
            progress=lambda step, total: tell(f"{temperature:g} K", step, total),
        )  # fmt: skip
    holes = [*found, *(hole for part in (*searches, *scans, *compressions, *hot) for hole in part.holes)]
    return Report(known, searches, scans, compressions, hot, holes)


def _groups(known: Known) -> list[tuple[str, list[int]]]:
    """Each element, each pair of elements, and all of them; or the molecule."""
    if known.molecule is not None:
        return [(str(known.molecule.symbols.formula.convert("hill")), [])]
    elements = sorted(known.structures)
    groups = [[z] for z in elements] + [[*pair] for pair in combinations(elements, 2)][:10]
    if len(elements) > 2:
        groups.append(elements)
    return [("-".join(chemical_symbols[z] for z in group), group) for group in groups]


def rows(report: Report) -> list[tuple[str, str, int, int, str]]:
    """(test, of what, how many structures, holes among them, the worst that was seen)."""
    out = []
    for s in report.searches:
        seen = f"lowest {s.lowest:+.2f} eV/atom from the limit, closest {s.shortest:.2f} of covalent radii"
        out.append(("random structures", s.name, s.n_cells, len(s.holes), seen))
    for title, unit, results in (("free pair", "eV", report.scans), ("compression", "eV/atom", report.compressions)):
        for r in results:
            seen = f"up to {r.highest:.3g} {unit}" if r.turns is None else f"falls below {r.turns:.2f}"
            out.append((title, r.name, r.n_points, len(r.holes), seen))
    for h in report.hot:
        seen = f"{h.temperature:.0f} K, closest {h.shortest:.2f} of covalent radii, force {h.force:.3g} eV/A"
        out.append(("dynamics", h.name, h.steps, len(h.holes), seen))
    return out


def holes_table(report: Report):
    """The report as a rich table."""
    from rich.table import Table

    table = Table("test", "of", "structures", "holes", "seen")
    table.columns[2].justify = table.columns[3].justify = "right"
    for title, name, n, holes, seen in rows(report):
        mark = f"[bold red]{holes}[/]" if holes else "[green]0[/]"
        table.add_row(title, name, str(n), mark, seen)
    return table


def as_dict(report: Report) -> dict:
    """`sound` for all together, one dict for each test, and each hole without its atoms; JSON can hold it."""
    tests = [dict(zip(("test", "of", "structures", "holes", "seen"), row)) for row in rows(report)]
    holes = [{"kind": h.kind, "detail": h.detail, "formula": str(h.atoms.symbols)} for h in report.holes]
    lowest = {chemical_symbols[z] if z else "molecule": energy for z, energy in report.known.energies.items()}
    found = {"sound": not report.holes, "energy_per_atom": lowest, "tests": tests, "holes": holes}
    json.dumps(found, allow_nan=False)
    return found


def save_holes(path: str | Path, report: Report) -> None:
    """The structures of all holes as extended XYZ, with `hole` and `detail` in the comment line."""
    text = io.StringIO()
    for hole in report.holes:
        atoms = Atoms(hole.atoms.numbers, hole.atoms.positions, cell=hole.atoms.cell, pbc=hole.atoms.pbc)
        if np.isfinite(atoms.positions).all():
            atoms.info = {"hole": hole.kind, "detail": hole.detail}
            write(text, atoms, format="extxyz")
    write_atomic(Path(path), text.getvalue().encode())
