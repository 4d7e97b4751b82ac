"""Test errors of the potentials beside published ones, and what a step costs: README tables and docs/accuracy.png.

    python benchmarks/accuracy.py --data FOLDER --readme README.md --figure docs/accuracy.png --json accuracy.json
    python benchmarks/accuracy.py my_potential other_potential --data FOLDER
    python benchmarks/accuracy.py --cards benchmarks/cards       # NAME/bench.md for cards.py

Without potentials all shipped ones are taken. The test file is the one that the potential's metadata names; it is
looked for below FOLDER by name and hash. Where it is not found, the errors are those that training wrote into the
metadata (marked *). published.json has the numbers compared with, their sources, and the definitions of the errors;
sets are told by the hash of the test file. The cost is processor time of one thread, energy + forces (+ stress, if periodic)
through EquiCalculator in float32: the least of five rounds, on about 200 atoms of the crystal or one molecule.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import torch
from ase.build import bulk
from markdown_tables import cell, markdown

from ase_equinn import EquiCalculator, read_header, shipped_potentials
from ase_equinn.bench import cpu_name, supercell, vibration
from ase_equinn.data_files import find_file
from ase_equinn.evaluate_batches import load_potential
from ase_equinn.evaluate_files import evaluate_files
from ase_equinn.plot import save_figure

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
KEYS = {"crystal": ("energy_mae", "force_mae"), "molecule": ("energy_total_rmse", "force_rmse")}
UNITS = {"crystal": ("MAE, meV/atom", "MAE, meV/A"), "molecule": ("RMSE, meV", "RMSE, meV/A")}
_MEASURED = {
    "crystal": "energy, forces and stress of some 200 atoms of the crystal",
    "molecule": "energy and forces of the molecule of `check.xyz`",
}
START, END = "<!-- accuracy -->", "<!-- end of accuracy -->"


class Result(NamedTuple):
    """Errors of one potential on its test set by the published definition; `cost` in us/atom/step or None."""

    potential: str
    name: str  # of the set
    kind: str  # crystal or molecule
    energy: float
    force: float
    n_frames: int
    evaluated: bool  # now, not taken from the metadata
    cost: float | None
    published: dict[str, dict]


def known_set(sha256: str | None) -> dict | None:
    """What published.json says of the set with this test file."""
    return next((entry for entry in PUBLISHED["sets"] if entry["test_sha256"] == sha256), None)


def test_files(metadata: dict) -> list[dict]:
    return metadata.get("training_data", {}).get("files", {}).get("test", [])


def judge(folder: Path, data: Path | None, measure: bool) -> Result | str:
    """The errors of one potential, or why there are none."""
    metadata = read_header(folder)["metadata"]
    files = test_files(metadata)
    if not files:
        return "its metadata names no test file"
    entry = known_set(files[0].get("sha256")) if len(files) == 1 else None
    first = ase.io.read(folder / "check.xyz", "0")
    kind = entry["kind"] if entry else "crystal" if first.pbc.all() else "molecule"
    try:
        paths = [find_file(f["file"], sha256=f.get("sha256"), below=data) for f in files] if data else []
    except (FileNotFoundError, ValueError):
        paths = []
    found = evaluate_files(load_potential(str(folder)), paths).errors if paths else metadata["errors"].get("test")
    if not found:
        return "its test file was not found, and its metadata holds no test errors"
    energy, force = (found[key] for key in KEYS[kind])
    return Result(
        potential=folder.name,
        name=entry["name"] if entry else ", ".join(Path(f["file"]).name for f in files),
        kind=kind,
        energy=energy,
        force=force,
        n_frames=found["n_frames"],
        evaluated=bool(paths),
        cost=cost(folder, first) if measure else None,
        published=entry["published"] if entry else {},
    )


def cost(folder: Path, atoms, rounds: int = 5) -> float:
    """us/atom/step of processor time."""
    if atoms.pbc.all():
        elements = set(atoms.symbols)
        atoms = supercell(bulk(elements.pop(), cubic=True) if len(elements) == 1 else atoms, 200)
    atoms.calc = EquiCalculator(str(folder), device="cpu")
    step, steps, found = vibration(atoms, np.random.default_rng(0)), max(20, 4000 // len(atoms)), []
    for _ in range(rounds + 1):
        begin = time.process_time()
        for _ in range(steps):
            step()
        found.append(time.process_time() - begin)
    return 1e6 * min(found[1:]) / steps / len(atoms)


def _pair(energy: float | None, force: float | None) -> str:
    return " / ".join("-" if value is None else cell(float(f"{value:.3g}")) for value in (energy, force))


def tables(results: Sequence[Result]) -> str:
    """Markdown: one table for crystals and one for molecules, published errors from the best forces on."""
    parts = []
    for kind, (energy, force) in UNITS.items():
        rows = []
        for r in (r for r in results if r.kind == kind):
            others = sorted(r.published.items(), key=lambda item: item[1]["force"])
            row = {
                "potential": f"`{r.potential}`",
                "test set": f"{r.name}, {r.n_frames} structures",
                f"energy ({energy}) / forces ({force})": f"**{_pair(r.energy, r.force)}**" + r" \*" * (not r.evaluated),
                "published": " · ".join(f"{name} {_pair(x['energy'], x['force'])}" for name, x in others) or "-",
                "us/atom/step": None if r.cost is None else round(r.cost, 1),
            }
            rows.append(row)
        if rows:
            parts.append(markdown(rows))
    if any(not r.evaluated for r in results):
        parts.append(r"\* as training found them; not evaluated again")
    return "\n\n".join(parts)


def plot(results: Sequence[Result]) -> Any:
    """Errors over cost, forces above energies, crystals beside molecules; published errors are dashed lines."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in UNITS if any(r.kind == kind and r.cost for r in results)]
    figure = Figure(figsize=(7.0 * max(len(kinds), 1), 8.8), layout="constrained")
    panels = figure.subplots(2, max(len(kinds), 1), squeeze=False)
    for column, kind in enumerate(kinds):
        own = [r for r in results if r.kind == kind and r.cost]
        for row, quantity in enumerate(("force", "energy")):
            _panel(panels[row][column], own, quantity)
            panels[row][column].set_ylabel(f"{('forces', 'energy')[row]}: {UNITS[kind][1 - row]}")
    return figure


def _panel(axes, own: Sequence[Result], quantity: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    colours, lines = {name: f"C{k}" for k, name in enumerate(dict.fromkeys(r.name for r in own))}, []
    for r in own:
        axes.plot(r.cost, getattr(r, quantity), "o", ms=9, color=colours[r.name])
        style = {"textcoords": "offset points", "weight": "bold", "color": colours[r.name]}
        axes.annotate(r.potential, (r.cost, getattr(r, quantity)), xytext=(8, -3), **style)
    for r in {r.name: r for r in own}.values():
        lines += [(x[quantity], name, colours[r.name]) for name, x in r.published.items() if x[quantity] is not None]
    for value, _, colour in lines:
        axes.axhline(value, ls="--", lw=0.8, color=colour, alpha=0.7)
    for name, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=f"{name}; dashed: published")
    errors = [getattr(r, quantity) for r in own] + [value for value, _, _ in lines]
    low, high = min(errors) / 1.25, max(errors) * 1.25
    axes.set(xscale="log", yscale="log", xlabel="us/atom/step, one thread", ylim=(low, high))
    axes.set_xlim(min(r.cost for r in own) / 2, max(r.cost for r in own) * 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    heights = [float(np.log(value / low) / np.log(high / low)) for value, _, _ in sorted(lines)]
    for (_, name, colour), at, label in zip(sorted(lines), heights, spread(heights, 0.028)):
        axes.annotate(
            name, (1, at), (1.03, label), "axes fraction", "axes fraction", fontsize=7.5, va="center", color=colour,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as need be so that neighbours are `gap` apart."""
    groups: list[tuple[float, int]] = []  # (where the lowest stands, how many stand on it)
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1 and groups[-1][0] < groups[-2][0] + groups[-2][1] * gap:
            (upper, n), (lower, m) = groups.pop(), groups.pop()
            groups.append(((lower * m + (upper - m * gap) * n) / (m + n), m + n))
    return [bottom + k * gap for bottom, count in groups for k in range(count)]


def into_readme(path: Path, text: str) -> None:
    """Replaces what stands between the two marks."""
    content = path.read_text()
    if content.count(START) != 1 or content.count(END) != 1:
        raise SystemExit(f"{path} must hold {START} and {END} once each")
    head, _, rest = content.partition(START)
    path.write_text(f"{head}{START}\n{text}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potentials", nargs="*", type=Path, help="folders; default: all shipped ones")
    parser.add_argument("--data", type=Path, help="a folder below which the test files lie")
    parser.add_argument("--no-cost", action="store_true")
    parser.add_argument("--readme", type=Path, help=f"replace what stands between {START} and {END}")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--cards", type=Path, help="write the cost to NAME/bench.md below this folder")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.cards and arguments.no_cost:
        parser.error("--cards needs the cost")
    torch.set_num_threads(1)
    results = []
    for folder in arguments.potentials or shipped_potentials().values():
        found = judge(folder, arguments.data, not arguments.no_cost)
        if isinstance(found, str):
            print(f"{folder.name}: {found}")
        else:
            results.append(found)
    text = tables(results)
    print(f"{cpu_name()}\n\n{text}")
    if arguments.readme:
        into_readme(arguments.readme, text)
    if arguments.figure:
        save_figure(plot(results), arguments.figure)
    for r in results if arguments.cards else ():
        (arguments.cards / r.potential).mkdir(parents=True, exist_ok=True)
        (arguments.cards / r.potential / "bench.md").write_text(
            f"{r.cost:.3g} us/atom/step: processor time of one thread ({cpu_name()}, torch {torch.__version__}),\n"
            f"float32, {_MEASURED[r.kind]}. `equinn bench` measures yours.\n"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([r._asdict() for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
