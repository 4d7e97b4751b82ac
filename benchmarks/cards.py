"""Writes the card (README.md) of a shipped potential: what its file says, published errors, properties, speed, limits.

    python benchmarks/cards.py potentials/silicon

The measured parts are files that other commands wrote, kept in benchmarks/cards/NAME/, each of them optional:

    equinn properties NAME --json benchmarks/cards/NAME/properties.json          crystals
    python benchmarks/molecules.py potentials/NAME --json benchmarks/cards/NAME/molecules.json
    equinn holes NAME --json benchmarks/cards/NAME/holes.json
    python benchmarks/accuracy.py potentials/NAME --cards benchmarks/cards       writes bench.md: processor time
    OMP_NUM_THREADS=1 equinn bench NAME --json benchmarks/cards/NAME/bench.json  instead, on a quiet machine

`limits.md` is written by hand. A properties.md, molecules.md, ... follows the table of the same name, or stands alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from accuracy import KEYS, UNITS, known_set, test_files
from markdown_tables import markdown

from ase_equinn.potential import Potential
from ase_equinn.potential_file import write_atomic
from ase_equinn.train_card import card
from ase_equinn.train_progress import number

SECTIONS = {
    "properties": "Properties",
    "molecules": "In use",
    "holes": "Far from the data",
    "bench": "Speed",
    "limits": "Limits",
}


def full_card(folder: Path, facts: Path) -> str:
    """The card that training writes, with published errors after its own and the parts of `facts` before the data."""
    potential = Potential.load(folder)
    parts = card(potential, folder.name).replace("  # this folder", "").split("\n## ")
    head, rest = parts[0], {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip("\n") for part in parts[1:]}
    pictures = [name for name in ("parity.png", "learning_curve.png") if (folder / name).is_file()]
    errors = [rest.pop("Errors"), beside_published(potential.metadata, folder.name)]
    errors.append(", ".join(f"[{name}]({name})" for name in pictures))
    texts = {"Errors": "\n\n".join(part for part in errors if part)}
    for stem, title in SECTIONS.items():
        found = [tabulated(stem, facts / f"{stem}.json"), written(facts / f"{stem}.md")]
        if any(found):
            texts[title] = "\n\n".join(part for part in found if part)
    return head + "\n" + "\n\n".join(f"## {title}\n\n{text}" for title, text in (texts | rest).items()) + "\n"


def beside_published(metadata: dict, name: str) -> str:
    """A table of test errors by the published definition, best forces first; "" for an unknown test set."""
    files, found = test_files(metadata), metadata["errors"].get("test")
    entry = known_set(files[0].get("sha256")) if len(files) == 1 else None
    if not (entry and found):
        return ""
    rows, sources = {f"**{name}**": tuple(found[key] for key in KEYS[entry["kind"]])}, {}
    for key, x in entry["published"].items():
        rows[key] = (x["energy"], x["force"])
        sources.setdefault(x["source"], []).append(key)
    columns = [f"{quantity}, {unit}" for quantity, unit in zip(("energy", "forces"), UNITS[entry["kind"]])]
    ordered = sorted(rows.items(), key=lambda item: item[1][1])
    table = {key: dict(zip(columns, map(number, pair))) for key, pair in ordered}
    title = f"Published for this test set ({entry['name']}, {found['n_frames']} structures):"
    return "\n\n".join([title, markdown(table), "\n".join(f"* {', '.join(keys)}: {s}" for s, keys in sources.items())])


def written(path: Path) -> str:
    return path.read_text().strip("\n") if path.is_file() else ""


def tabulated(stem: str, path: Path) -> str:
    """A JSON file as tables: of the commands above, or any {label: value}, {row: {column: value}}, {title: table}."""
    if not path.is_file():
        return ""
    content = json.loads(path.read_text())
    if stem == "properties" and "lattice" in content:
        return crystal(content)
    if stem == "holes" and "tests" in content:
        verdict = "no hole was found" if content["sound"] else "holes were found"
        return f"`equinn holes`: {verdict}.\n\n{markdown(content['tests'])}"
    if stem == "bench" and "rows" in content:
        return speed(content)
    if all(isinstance(rows, dict) and isinstance(next(iter(rows.values()), None), dict) for rows in content.values()):
        return "\n\n".join(f"{title}\n\n{markdown(rows)}" for title, rows in content.items())
    return markdown(content)


def speed(found: dict) -> str:
    columns = {"atoms": "n_atoms", "us/atom/step": "us_per_atom", "ms/step": "ms_per_step"}
    rows = [{column: row[key] for column, key in columns.items()} for row in found["rows"]]
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    what = f"`equinn bench` ({found['dtype']}, {threads}, {found['evaluation']})"
    machine = found["cpu"] if found["device"] == "cpu" else found["device"]
    return f"{what} on {machine}, torch {found['torch']}:\n\n{markdown(rows)}"


def crystal(found: dict) -> str:
    """What `equinn properties --json` wrote, beside DFT where benchmarks/crystals.py has it."""
    from crystals import REFERENCES

    symbol = found["name"].split(",")[0]
    reference, lattice = REFERENCES.get(symbol), found["lattice"]
    dft = {"a, A": reference.a, **{f"{k}, GPa": v for k, v in reference.elastic.items()}} if reference else {}
    rows: dict[str, dict[str, Any]] = {"a, A": {"clamped ions": f"{lattice['lengths'][0]:.4f}"}}
    rows["B, GPa"] = {"clamped ions": f"{lattice['bulk_modulus']:.1f}"}
    if reference:
        dft["B, GPa"] = round((dft["C11, GPa"] + 2 * dft["C12, GPa"]) / 3, 1)
    for ions in ("clamped", "relaxed"):
        for name, value in cubic(found[ions]["tensor"]).items() if found[ions] else ():
            rows.setdefault(f"{name}, GPa", {})[f"{ions} ions"] = f"{value:.1f}"
    columns = ["clamped ions", *["DFT, clamped"] * bool(dft), "relaxed ions"]
    rows = {name: {"DFT, clamped": str(dft[name]) if name in dft else None, **row} for name, row in rows.items()}
    rows = {name: {column: row.get(column) for column in columns} for name, row in rows.items()}
    lines = [markdown(rows)]
    if hole := found["vacancy"]:
        values = f"{hole['energy']:.2f} eV ({hole['unrelaxed']:.2f} unrelaxed)"
        lines.append(f"* vacancy formation, {hole['n_atoms']} atoms: {values}")
    for face in found["surfaces"]:
        lines.append(f"* surface ({''.join(map(str, face['miller']))}), not reconstructed: {face['energy']:.2f} J/m^2")
    if waves := found["phonons"]:
        state = "imaginary modes" if waves["imaginary"] else "no imaginary mode"
        lines.append(f"* phonons, {waves['n_atoms']} atoms: {state}, highest {waves['highest']:.2f} THz")
    for run in found["dynamics"]:
        state = "stable" if run["stable"] else f"not stable: {run['reason']}"
        ran = f"{run['survived']:.3g} of {run['time']:g} ps, mean {run['mean_temperature']:.0f} K"
        lines.append(f"* {run['state']} at {run['temperature']:g} K, {run['n_atoms']} atoms: {state}, {ran}")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def cubic(tensor: list[list[float]]) -> dict[str, float]:
    """The cubic constants of a 6 x 6 tensor."""
    pairs = {"C11": ((0, 0), (1, 1), (2, 2)), "C12": ((0, 1), (0, 2), (1, 2)), "C44": ((3, 3), (4, 4), (5, 5))}
    return {name: sum(tensor[i][j] for i, j in places) / 3 for name, places in pairs.items()}


def shortened(content: Any, longest: int = 12) -> Any:
    """Without lists of more than so many entries: curves, frequencies, structures."""
    if isinstance(content, dict):
        kept = {key: shortened(value, longest) for key, value in content.items()}
        return {key: value for key, value in kept.items() if not (isinstance(value, list) and len(value) > longest)}
    return [shortened(value, longest) for value in content] if isinstance(content, list) else content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potentials", nargs="+", type=Path, help="folders")
    beside = Path(__file__).parent / "cards"
    parser.add_argument("--facts", type=Path, default=beside, help="folder of NAME/*.json, *.md")
    parser.add_argument("--print", action="store_true", help="do not write README.md")
    parser.add_argument("--shorten", action="store_true", help="drop long lists from the JSON files first")
    arguments = parser.parse_args()
    for folder in arguments.potentials:
        for file in (arguments.facts / folder.resolve().name).glob("*.json") if arguments.shorten else ():
            content = shortened(json.loads(file.read_text()), 100 if file.stem == "holes" else 12)
            write_atomic(file, (json.dumps(content, indent=1) + "\n").encode())
        text = full_card(folder, arguments.facts / folder.resolve().name)
        if arguments.print:
            print(text)
        else:
            write_atomic(folder / "README.md", text.encode())


if __name__ == "__main__":
    main()
