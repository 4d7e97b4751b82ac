"""parity finds engines that differ, and the real ones do not."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from toy import Pair
from typer.testing import CliRunner

from ase_equinn import EquiCalculator, Potential, SchNet
from ase_equinn import parity as module
from ase_equinn.cli import app
from ase_equinn.parity import ENGINES, Engine, Skip, as_json, parity, parity_table
from ase_equinn.runfiles import RunFileError


@pytest.fixture(scope="module")
def potential():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Potential(Pair((14, 29), 4.0).double())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A potential file for the commands."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SchNet((8, 14), 4.0, n_channels=8, n_layers=2, n_basis=8)
    folder = tmp_path_factory.mktemp("potential") / "tiny"
    Potential(network, scale=0.1).save(folder)
    return folder


def engine(name, change=lambda results: results, package=None):
    """An engine that is EquiCalculator, with its results changed."""

    def run(potential, frames, device, dtype):
        calculator, results = EquiCalculator(potential, dtype=dtype), []
        for atoms in frames:
            calculator.calculate(atoms, ["forces"])
            results.append({name: np.copy(value) for name, value in calculator.results.items()})
        return change(results)

    return Engine(name, package, "pip install it", run)


def with_engines(monkeypatch, *engines):
    monkeypatch.setattr(module, "ENGINES", {one.name: one for one in engines})


def shifted(key, amount):
    def change(results):
        results[-1][key] = results[-1][key] + amount
        return results

    return change


@pytest.mark.parametrize("key, column", [("forces", "forces"), ("stress", "stress"), ("energy", "energy")])
def test_a_difference_beyond_the_limit_fails_and_one_below_does_not(potential, monkeypatch, key, column):
    atoms = bulk("Cu", cubic=True)
    largest = parity(potential, atoms, engines=["batch"]).max_force
    n = len(atoms) if key == "energy" else 1
    with_engines(
        monkeypatch,
        engine("same"),
        engine("close", shifted(key, 0.9e-6 * largest * n)),
        engine("off", shifted(key, -1.1e-6 * largest * n)),
    )
    found = parity(potential, atoms)
    assert [row.passed for row in found.rows] == [True, True, False] and not found.passed
    assert getattr(found.rows[2], column) == pytest.approx(1.1e-6 * largest, rel=1e-6)
    assert getattr(found.rows[0], column) == 0.0
    assert parity(potential, atoms, tolerance=1e-5).passed


def test_engines_that_are_absent_do_not_count_and_those_that_break_do(potential, monkeypatch):
    def broken(results):
        raise RuntimeError("lost rank 3")

    def unfit(results):
        raise Skip("knows no molecules")

    absent = engine("absent", package="no_such_package_anywhere")
    with_engines(monkeypatch, absent, engine("unfit", unfit))
    found = parity(potential, bulk("Cu"))
    assert found.passed and [row.passed for row in found.rows] == [None, None]
    assert [row.note for row in found.rows] == ["not installed: pip install it", "knows no molecules"]
    with_engines(monkeypatch, engine("broken", broken), engine("same"))
    found = parity(potential, bulk("Cu"))
    assert [row.passed for row in found.rows] == [False, True] and not found.passed
    assert "lost rank 3" in found.rows[0].note

    def without_stress(results):
        return [{"energy": r["energy"], "forces": r["forces"], "stress": None} for r in results]

    with_engines(monkeypatch, engine("mute", without_stress), engine("short", lambda results: results[:1]))
    found = parity(potential, bulk("Cu"))
    assert [(row.passed, row.note) for row in found.rows] == [(False, "no stress"), (False, "1 results for 3 frames")]
    with_engines(monkeypatch, engine("nan", shifted("forces", np.nan)))
    assert not parity(potential, bulk("Cu")).passed


def test_frames_are_the_files_or_displaced_copies(potential, tmp_path):
    write(tmp_path / "nine.xyz", [bulk("Cu", a=3.5 + 0.01 * k) for k in range(9)])
    found = module._frames(tmp_path / "nine.xyz", 3)
    assert [atoms.cell[0, 1] for atoms in found] == pytest.approx([1.75, 1.77, 1.79])
    copies = module._frames(molecule("H2O"), 3)
    assert len(copies) == 3 and len({atoms.positions.tobytes() for atoms in copies}) == 3
    assert np.abs(copies[1].positions - copies[0].positions).max() < 0.3
    with pytest.raises(FileNotFoundError, match="none.xyz"):
        parity(potential, tmp_path / "none.xyz")
    (tmp_path / "broken.xyz").write_text("nonsense")
    with pytest.raises(RunFileError, match="broken.xyz"):
        parity(potential, tmp_path / "broken.xyz")
    with pytest.raises(ValueError, match="needs a structure with atoms"):
        parity(potential, Atoms())
    with pytest.raises(ValueError, match="got 'gromacs'"):
        parity(potential, bulk("Cu"), engines=["gromacs"])
    with pytest.raises(ValueError, match=r"\(Ge\); supported: Si, Cu"):
        parity(potential, bulk("Ge"))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        parity(potential, bulk("Cu"), n_frames=0)


def test_table_and_json_say_the_same(potential):
    found = parity(potential, molecule("Si2H6")[:2], engines=["batch"])
    assert found.rows[0].stress is None and found.passed
    text = json.loads(as_json(found))
    assert text["passed"] and text["rows"][0]["engine"] == "batch" and text["n_frames"] == 3
    assert parity_table(found).row_count == 1


def test_every_installed_engine_agrees(folder, tmp_path):
    """The command on a skewed, left-handed cell of two elements; float64, so 1e-6 of the largest force is generous."""
    atoms = bulk("Si", cubic=True)
    atoms.symbols[::3] = "O"
    strain = 0.1 * np.random.default_rng(0).normal(size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    atoms.rattle(0.1, seed=0)
    write(tmp_path / "start.xyz", atoms)
    wanted = ["batch", "torch-sim", "i-pi", "lammps-2"]
    arguments = ["parity", str(folder), str(tmp_path / "start.xyz"), "--engines", ",".join(wanted)]
    result = CliRunner().invoke(app, [*arguments, "--frames", "2", "--json", str(tmp_path / "parity.json")])
    assert result.exit_code == 0, result.output
    rows = {row["engine"]: row for row in json.loads((tmp_path / "parity.json").read_text())["rows"]}
    assert list(rows) == wanted
    for name, row in rows.items():
        package = ENGINES[name].package
        installed = package is None or importlib.util.find_spec(package) is not None
        assert row["passed"] is (True if installed else None), row
        if installed:
            assert row["energy"] < 1e-10 and row["forces"] < 1e-9 and row["stress"] < 1e-10


def test_the_command_exits_with_1_where_an_engine_differs(folder, tmp_path, monkeypatch):
    with_engines(monkeypatch, engine("same"), engine("off", shifted("forces", 1.0)))
    write(tmp_path / "start.xyz", bulk("Si", cubic=True))
    result = CliRunner().invoke(app, ["parity", str(folder), str(tmp_path / "start.xyz")], env={"COLUMNS": "150"})
    assert result.exit_code == 1 and "differs" in result.stdout
    result = CliRunner().invoke(app, ["parity", str(folder), str(tmp_path / "start.xyz"), "--engines", "namd"])
    assert result.exit_code == 2 and "got 'namd'" in result.stderr
