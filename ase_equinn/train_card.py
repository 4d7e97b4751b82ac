"""The card of a potential: what it was trained on, how good it is, what it is not for; README.md of its folder."""

from __future__ import annotations

from collections import Counter

from ase import units
from ase.data import atomic_numbers

from .metrics import OF_KIND, by_kind
from .potential import Potential
from .train_progress import duration, number

PARTS = ("train", "valid", "test")  # a file's metadata come back in alphabetical order


def card(potential: Potential, name: str) -> str:
    """Markdown made of the potential's metadata alone."""
    facts = potential.metadata
    data, training = facts["training_data"], facts["training"]
    lines = [
        f"# {name}",
        "",
        f"An interatomic potential for {', '.join(data['elements'])} "
        f"({_models(potential)}, cutoff {potential.cutoff:g} A, "
        f"{sum(p.numel() for p in potential.parameters())} parameters).",
        "",
        "```python",
        "from ase_equinn import EquiCalculator",
        f"atoms.calc = EquiCalculator({name!r})  # this folder",
        "```",
        "",
        f"Level of theory: {facts['level_of_theory'] or 'not stated in the config'}",
        "",
        "## Errors",
        "",
        "| set | frames | E MAE meV/atom | E RMSE | F MAE meV/A | F RMSE | S MAE meV/A^3 | S RMSE |",
        "|---|---|---|---|---|---|---|---|",
        *(_error_row(part, facts["errors"][part]) for part in PARTS if part in facts["errors"]),
        "",
        *_kind_lines({part: facts["errors"][part] for part in PARTS if part in facts["errors"]}),
        *_offset_lines(training),
        "Forces and stresses by component. The weights have the least loss on `valid`; nothing was fitted to `test`.",
        "",
        "## Data",
        "",
        *(_file_line(part, entry) for part in PARTS for entry in data["files"].get(part, [])),
        "",
        f"{data['n_frames']} training frames, {data['n_atoms']} atoms: "
        + ", ".join(f"{count} {symbol}" for symbol, count in data["elements"].items()),
        "",
        *_range_lines(data),
        "",
        "Outside these ranges the potential extrapolates.",
        "",
        "| element | reference energy eV | from | isolated atom in this potential eV |",
        "|---|---|---|---|",
        *_energy_rows(potential, training["statistics"]),
        "",
        "Isolated atoms are not fitted: dissociation energies are meaningless unless the last column agrees.",
        "",
        "## Training",
        "",
        *_training_lines(training),
        "`check.xyz` holds structures with the energies, forces and stresses that this potential gives in float64.",
        "",
    ]
    return "\n".join(lines)


def _models(potential: Potential) -> str:
    """Their classes: "MACE, ZBL" or "4 MACE, ZBL"."""
    numbers = Counter(type(model).__name__ for model in potential.models)
    return ", ".join(name if n == 1 else f"{n} {name}" for name, n in numbers.items())


def _training_lines(training: dict) -> list[str]:
    start = training["config"].get("start")
    begin = [f"It began with the weights of `{start['file']}` (sha256 {start['sha256']}).", ""] if start else []
    if "members" not in training:
        return [
            *begin,
            f"`equinn train train.yaml`: {training['epochs']} epochs, {training['steps']} steps in "
            f"{duration(training['seconds'])}; {_chosen(training)}.",
        ]
    return [
        *begin,
        f"`equinn train train.yaml`: the energy is the mean of {len(training['members'])} networks with other seeds, trained "
        f"for {duration(training['seconds'])} together.",
        "",
        "| seed | epochs | steps | time | weights averaged up to epoch |",
        "|---|---|---|---|---|",
        *(
            f"| {one['seed']} | {one['epochs']} | {one['steps']} | {duration(one['seconds'])} | {one['best_epoch']} |"
            for one in training["members"]
        ),
        "",
    ]


def _chosen(training: dict) -> str:
    if training["best_epoch"] == 0 and training["config"].get("start"):
        return "no epoch had less loss on `valid` than the weights it began with, which these are"
    return f"weights averaged up to epoch {training['best_epoch']}"


def _kind_lines(found: dict[str, dict]) -> list[str]:
    """Where errors sit, for sets of several kinds of structures."""
    rows = [
        f"| {part} | {kind} | {one['n_frames']} | " + " | ".join(number(one[key]) for key in OF_KIND) + " |"
        for part, result in found.items()
        for kind, one in by_kind(result).items()
    ]
    if not rows:
        return []
    return [
        "| set | config_type | frames | E mean error | E MAE meV/atom | F MAE meV/A | S MAE meV/A^3 |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _offset_lines(training: dict) -> list[str]:
    if "stress_offset" not in training:
        return []
    offset = training["stress_offset"]
    return [
        f"The stress labels hold a constant {1000 * offset:.2f} meV/A^3 ({offset / units.GPa:.2f} GPa, as a stress) that "
        "their energies do not have. It was fitted and left out of the potential: the errors of stresses contain it.",
        "",
    ]


def _error_row(name: str, result: dict) -> str:
    cells = [number(result[f"{key}_{kind}"]) for key in ("energy", "force", "stress") for kind in ("mae", "rmse")]
    return f"| {name} | {result['n_frames']} | {' | '.join(cells)} |"


def _file_line(part: str, entry: dict) -> str:
    details = [f"{key} {entry[key]}" for key in ("licence", "source", "sha256") if entry.get(key)]
    return f"* {part} `{entry['file']}`: {', '.join(details)}"


def _range_lines(data: dict) -> list[str]:
    lines = []
    if data["min_distance"] is not None:
        lines.append(f"* shortest distance {data['min_distance']:.2f} A")
    for key, unit in (("energy_per_atom", "eV"), ("volume_per_atom", "A^3")):
        if data[key]:
            lines.append(f"* {key.replace('_', ' ')} {data[key][0]:.4f} to {data[key][1]:.4f} {unit}")
    if data["max_force"] is not None:
        lines.append(f"* largest force component {data['max_force']:.1f} eV/A")
    return lines


def _energy_rows(potential: Potential, statistics: dict) -> list[str]:
    return [
        f"| {symbol} | {energy:.6f} | {statistics['reference_energies_from'][symbol].split(',')[0]} | "
        f"{potential.isolated_energy(atomic_numbers[symbol]):.6f} |"
        for symbol, energy in statistics["reference_energies"].items()
    ]
