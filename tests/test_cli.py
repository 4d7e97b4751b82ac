"""The command line: what it passes on, prints and exits with. What the commands compute is tested with their modules."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from typer.testing import CliRunner

from ase_equinn.cli import app
from ase_equinn.cli_output import explain

COMMANDS = (
    "demo", "train", "eval", "info", "check", "bench", "calibrate", "import", "relax", "md", "plot", "lammps", "ipi",
    "parity", "properties", "holes",
)  # fmt: skip


def equinn(*arguments, code: int = 0):
    """Runs a command in this process; a traceback anywhere fails the test."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


def refused(*arguments) -> str:
    """The one line on standard error with which a command refuses its input."""
    result = equinn(*arguments, code=2)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def potential(tmp_path_factory) -> Path:
    """An untrained SchNet with energies of some meV, so that a rattled crystal neither relaxes at once nor collapses."""
    import torch

    from ase_equinn import Potential, SchNet

    folder = tmp_path_factory.mktemp("potential") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SchNet((8, 14), 4.0, avg_num_neighbors=16.0)
    errors = dict.fromkeys(("energy", "energy_total", "force", "stress"), 1.25)
    errors = {f"{name}_{kind}": value for name, value in errors.items() for kind in ("mae", "rmse")}
    metadata = {"level_of_theory": "PBE", "errors": {"test": {"n_frames": 3, "per_species": {}, **errors}}}
    Potential(model, scale=1e-3, reference_energies={8: -430.5, 14: -7881.25}, metadata=metadata).save(folder)
    return folder


@pytest.fixture
def structure(tmp_path) -> Path:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    write(tmp_path / "start.xyz", atoms)
    return tmp_path / "start.xyz"


@pytest.fixture
def labelled(tmp_path) -> Path:
    frames = []
    for seed in range(3):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.info["REF_energy"] = -8 * 7881.25 + 0.008 * seed
        atoms.arrays["REF_forces"] = np.full((8, 3), 0.5)
        frames.append(atoms)
    write(tmp_path / "labelled.xyz", frames)
    return tmp_path / "labelled.xyz"


def test_help_is_a_page_with_every_command_and_examples():
    text = equinn("--help").stdout
    for command in COMMANDS:
        assert f" {command} " in text
        assert f"equinn {command}" in text, f"no example for {command}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_arguments(command):
    text = equinn(command, "--help").stdout
    assert f"Usage: equinn {command}" in text


def documented_commands() -> list[str]:
    """Every `equinn ...` in the README and in the examples of the help."""
    from ase_equinn.cli import EPILOG

    text = (Path(__file__).parents[1] / "README.md").read_text() + EPILOG
    return sorted(set(re.findall(r"(?:^    |`|&& )equinn ([^`\n&]+)", text, flags=re.MULTILINE)))


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_exist_with_their_options(line):
    words = line.split()
    command = words[: 2 if words[0] == "plot" and len(words) > 1 and words[1][0] != "-" else 1]
    if command[0].startswith("-"):
        command = []
    help_text = equinn(*command, "--help").stdout
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<!\S){option}(?!\S)", help_text), option


def test_help_loads_nothing_heavy():
    """Half a second is what a person waits for without noticing; these imports take several."""
    code = "import sys; sys.argv = ['equinn', '--help']\nfrom ase_equinn.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "ase_equinn.cli" in loaded and not {"torch", "numpy", "ase", "matplotlib", "pydantic", "lightning"} & loaded


def test_version():
    import ase_equinn

    assert equinn("--version").stdout.strip() == ase_equinn.__version__


@pytest.mark.parametrize("chosen, kept", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_user_chose(chosen, kept):
    """In a process of its own: what torch's OpenMP runtime reads is the environment from before torch was imported."""
    code = (
        "import os, sys\n"
        "from ase_equinn import cli\n"
        "cli.app = lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "cli.main()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": chosen} if chosen else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kept, "False"]


def test_info_prints_the_header(potential):
    text = equinn("info", potential).stdout
    from ase_equinn import read_header

    header = read_header(potential)
    for fact in ("schnet", "O Si", "4 Å", "float32", "PBE", header["sha256"], "-7881.25", "test", "1.25"):
        assert fact in text, fact


def test_info_lists_the_shipped_potentials():
    from ase_equinn import shipped_potentials

    text = equinn("info").stdout
    assert all(name in text for name in shipped_potentials())


def test_eval_writes_errors_and_predictions(potential, labelled, tmp_path):
    from ase_equinn import EquiCalculator

    text = equinn(
        "eval", potential, labelled, "--json", tmp_path / "e.json", "--out", tmp_path / "p.xyz", "--dtype", "float64"
    ).stdout
    found = json.loads((tmp_path / "e.json").read_text())
    assert list(found) == [
        "n_frames", "energy_bias", "energy_mae", "energy_rmse", "energy_total_mae", "energy_total_rmse",
        "force_mae", "force_rmse", "stress_mae", "stress_rmse", "per_species", "per_config_type",
    ]  # fmt: skip
    assert found["n_frames"] == 3 and found["stress_mae"] is None
    calculator = EquiCalculator(potential, dtype="float64", device="cpu")
    difference = []
    for atoms, predicted in zip(read(labelled, ":"), read(tmp_path / "p.xyz", ":"), strict=True):
        reference = atoms.arrays["REF_forces"]
        atoms.calc = calculator
        assert predicted.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        difference.append(atoms.get_forces() - reference)
    assert found["force_mae"] == pytest.approx(1000 * np.abs(difference).mean(), rel=1e-6)
    assert "3 frames" in text and "meV/atom" in text


def test_eval_draws_the_parity_plot(potential, labelled, tmp_path):
    equinn("eval", potential, labelled, "--plot", tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_relax_writes_the_relaxed_structure(potential, structure, tmp_path):
    out = tmp_path / "relaxed"
    text = equinn("relax", potential, structure, "--fmax", 1e-4, "--out", out, "--dtype", "float64").stdout
    assert "relaxed after" in text
    relaxed = read(out / "relaxed.xyz")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 1e-4
    assert np.abs(relaxed.cell - read(structure).cell).max() == 0


def test_relax_exits_1_if_it_did_not_converge(potential, structure, tmp_path):
    result = equinn("relax", potential, structure, "--fmax", 1e-9, "--steps", 2, "--out", tmp_path / "r", code=1)
    assert "not converged after 2 steps" in result.stdout


def test_md_resumed_equals_md_in_one_go(potential, structure, tmp_path):
    command = [
        "md",
        potential,
        structure,
        "--ensemble",
        "nvt",
        "--temperature",
        300,
        "--log-every",
        2,
        "--frame-every",
        5,
    ]
    equinn(*command, "--steps", 20, "--out", tmp_path / "whole")
    equinn(*command, "--steps", 10, "--out", tmp_path / "parts")
    equinn(*command, "--steps", 20, "--out", tmp_path / "parts", "--resume")
    for name in ("md.csv", "md.xyz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_md_refuses_to_overwrite(potential, structure, tmp_path):
    command = ["md", potential, structure, "--temperature", 300, "--steps", 2, "--out", tmp_path / "md"]
    equinn(*command)
    assert "md.csv exists" in refused(*command)
    assert "exclude each other" in refused(*command, "--resume", "--overwrite")
    equinn(*command, "--overwrite")


def test_mistakes_are_one_line(potential, structure, labelled, tmp_path):
    """The message names what is wrong; no traceback."""
    assert "no_such_potential" in refused("info", "no_such_potential")
    assert "missing.xyz" in refused("relax", potential, tmp_path / "missing.xyz", "--out", tmp_path / "a")
    assert "'mps'" in refused("relax", potential, structure, "--device", "mps", "--out", tmp_path / "b")
    assert "temperature" in refused("md", potential, structure, "--ensemble", "nvt", "--out", tmp_path / "c")
    assert "my_energy" in refused("eval", potential, labelled, "--energy-key", "my_energy")
    assert "config.yaml" in refused("train", tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("data: {train: a.xyz}\noutput: x\nmodle: nequip\n")
    assert "did you mean 'model'" in refused("train", tmp_path / "config.yaml")
    write(tmp_path / "gold.xyz", Atoms("Au"))
    assert "Au" in refused("relax", potential, tmp_path / "gold.xyz", "--out", tmp_path / "d")
    write(tmp_path / "molecule.xyz", Atoms("SiO", [[0, 0, 0], [0, 0, 1.6]]))
    assert "periodic" in refused(
        "relax", potential, tmp_path / "molecule.xyz", "--cell", "full", "--out", tmp_path / "e"
    )


def test_damaged_potential_is_one_line(potential, tmp_path):
    content = bytearray((potential / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "damaged" in refused("info", tmp_path / "model.safetensors")


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(app, ["--debug", "info", "no_such_potential"])
    assert type(result.exception).__name__ == "PotentialFileError"


def test_demo_passes_its_options_on_and_prints_the_table(potential, tmp_path, monkeypatch):
    from ase_equinn import demo

    received = []

    def stub(output, model, *, steps, device, progress):
        received.append((output, model, steps, device))
        progress("NVE", 1, 2)
        rows = [demo.Row("lattice constant, energy", "A", 5.4321, None, 5.469)]
        return demo.DemoReport(rows, output, 12.0, [])

    monkeypatch.setattr(demo, "demo", stub)
    text = equinn("demo", "--out", tmp_path / "d", "--potential", potential, "--steps", 20, "--device", "cpu").stdout
    assert received == [(tmp_path / "d", str(potential), 20, "cpu")]
    assert "5.4321" in text and "5.469" in text and "12 s" in text


@pytest.mark.parametrize(
    "arguments, name, start",
    [
        (["basis", "gaussian", "--n", 5, "--cutoff", 5], "gaussian.png", b"\x89PNG"),
        (["basis", "bessel-legendre", "-n", 1, "-l", 2], "bessel-legendre.png", b"\x89PNG"),
        (["wigner", "--irreps", "2x0e+1x1o"], "wigner.png", b"\x89PNG"),
    ],
)
def test_plot_writes_a_picture(arguments, name, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert equinn("plot", *arguments).stdout.strip() == name
    assert (tmp_path / name).read_bytes().startswith(start)


def test_plot_harmonics_writes_a_picture_and_a_page(tmp_path):
    pytest.importorskip("plotly", reason="the page needs plotly")
    equinn("plot", "harmonics", "--lmax", 1, "-o", tmp_path / "y.png")
    assert (tmp_path / "y.png").read_bytes().startswith(b"\x89PNG")
    assert b"<html" in (tmp_path / "y.html").read_bytes()[:100]


def test_plot_names_are_those_of_the_bases():
    from ase_equinn.cli_plot import Basis
    from ase_equinn.radial import BASES

    assert {item.value for item in Basis} == {*BASES, "bessel-legendre"}


def test_check_passes_and_fails_by_its_exit_status(potential, tmp_path, monkeypatch):
    text = equinn("check", potential, "--json", tmp_path / "check.json").stdout
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["passed"] and len(report["checks"]) > 10
    assert all(entry["name"] in text for entry in report["checks"])
    from ase_equinn import check

    def failing(*_, **__):
        return [check.CheckResult("forces", 1.0, 1e-6, False, 0.1, "eV/A", "made to fail")]

    monkeypatch.setattr(check, "check", failing)
    assert "FAIL" in equinn("check", potential, code=1).stdout


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert "plotly" in refused(
        "plot", "harmonics", "--lmax", 1, "-o", tmp_path / "a.png", "--html", tmp_path / "a.html"
    )
    error = ModuleNotFoundError("No module named 'lightning'", name="lightning.pytorch")
    assert 'pip install "ase_equinn[train]"' in explain(error)
    assert explain(ModuleNotFoundError("No module named 'torhc'", name="torhc")) is None, "a bug keeps its traceback"


def test_installed_command_exits_2_without_traceback():
    done = subprocess.run(
        [Path(sys.executable).with_name("equinn"), "info", "no_such_potential"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "no_such_potential" in done.stderr


def test_calibrate_prints_how_good_it_is_and_writes_a_potential(potential, labelled, tmp_path):
    from ase_equinn import EquiCalculator, read_header

    out, figure = tmp_path / "out", tmp_path / "reliability.png"
    oxygen = bulk("O", "sc", a=2.5) * (2, 1, 1)
    write(labelled, [*read(labelled, ":"), oxygen])  # a frame without labels, to train on
    valid = tmp_path / "valid.xyz"
    write(valid, read(labelled, ":3"))
    arguments = "calibrate", potential, "--train", labelled, "--valid", valid, "-o", out
    result = equinn(*arguments, "--test", valid, "--plot", figure, "--centres", 3)
    assert re.search(r"valid .* 24 .*\n.*test .* 24 ", result.stdout) and "3 sigma" in result.stdout
    assert "written to" in result.stdout and figure.read_bytes().startswith(b"\x89PNG")
    assert read_header(out)["uncertainty"]["facts"]["files"]["valid"][0]["file"] == "valid.xyz"
    assert EquiCalculator(str(out), device="cpu", guard="stop").get_property("forces_sigma", bulk("Si")).shape == (2,)
    assert "--overwrite" in refused(*arguments)
    assert "element 8" in refused("calibrate", potential, "--train", valid, "--valid", valid, "-o", tmp_path / "other")
