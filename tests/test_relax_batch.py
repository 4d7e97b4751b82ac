"""Many structures relaxed side by side end where each ends alone."""

import csv

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import read, write
from toy import Pair

from ase_equinn import EquiCalculator, Potential
from ase_equinn.relax import RelaxSettings, relax
from ase_equinn.relax_batch import relax_all
from ase_equinn.runfiles import RunError, RunFileError


@pytest.fixture(scope="module")
def potential():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Potential(Pair((14, 29), 5.0, r0=2.4).double())


@pytest.fixture
def crystals():
    rng, found = np.random.default_rng(0), []
    for k in range(5):
        atoms = bulk("Cu", "fcc", a=3.4, cubic=True) * (1, 1, 1 + k % 2)
        atoms.rattle(0.02 * k, seed=k)  # the first is relaxed from the start
        if k:
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
        found.append(atoms)
    found[3].set_constraint(FixAtoms([0, 1]))
    return found


@pytest.mark.parametrize("optimizer, cell", [("fire", "full"), ("lbfgs", "fixed"), ("bfgs", "isotropic")])
def test_each_ends_where_it_ends_alone(potential, crystals, optimizer, cell):
    """Float64: the same steps; round-off of sums in another order grows over two tens of them."""
    settings = RelaxSettings(cell=cell, optimizer=optimizer, pressure=0.5, fmax=0.005)
    together = relax_all(crystals, potential, settings, steps=25, dtype="float64")
    before = [atoms.copy() for atoms in crystals]
    calculator = EquiCalculator(potential, dtype="float64")
    for atoms, found in zip(crystals, together):
        alone = relax(atoms, calculator, settings, steps=25)
        assert (found.steps, found.converged) == (alone.steps, alone.converged)
        np.testing.assert_allclose(found.atoms.positions, alone.atoms.positions, atol=1e-7)
        np.testing.assert_allclose(found.atoms.cell, alone.atoms.cell, atol=1e-7)
        assert found.max_force == pytest.approx(alone.max_force, abs=1e-6)
        assert found.atoms.get_potential_energy() == pytest.approx(alone.atoms.get_potential_energy(), abs=1e-9)
    assert optimizer == "fire" or len({found.steps for found in together}) > 1  # some leave the batch before others
    assert before == crystals


def test_results_are_written_in_order_and_in_one_stroke(potential, crystals, tmp_path):
    write(tmp_path / "start.xyz", crystals)
    told = []
    settings = RelaxSettings(optimizer="fire")
    results = relax_all(
        tmp_path / "start.xyz", potential, settings, output=tmp_path / "out", progress=lambda *done: told.append(done)
    )
    frames = read(tmp_path / "out/relaxed.xyz", ":")
    rows = list(csv.DictReader(open(tmp_path / "out/relaxed.csv")))
    assert told[-1] == (5, 5) and len(frames) == len(rows) == 5
    for k, (frame, row, result) in enumerate(zip(frames, rows, results)):
        assert int(row["index"]) == k and int(row["steps"]) == result.steps and row["converged"] == "True"
        assert frame.get_potential_energy() == pytest.approx(float(row["energy"]), abs=1e-7)
        np.testing.assert_allclose(frame.positions, result.atoms.positions, atol=1e-7)
    with pytest.raises(RunFileError, match="relaxed.xyz exists"):
        relax_all(crystals, potential, output=tmp_path / "out")
    with pytest.raises(ValueError, match="no restart file"):
        relax_all(crystals, potential, output=tmp_path / "out", existing="resume")
    (few,) = relax_all(crystals[4:5], potential, settings, steps=1, output=tmp_path / "out", existing="overwrite")
    assert not few.converged and len(read(tmp_path / "out/relaxed.xyz", ":")) == 1


def test_a_structure_that_fails_is_named_and_nothing_is_written(potential, crystals, tmp_path):
    with pytest.raises(ValueError, match=r"structure 5: atom 0 has atomic number 8 \(O\)"):
        relax_all([*crystals, bulk("O", "fcc", a=3.0)], potential, output=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match=r"structure 1: cell='full' needs three periodic directions"):
        relax_all([crystals[0], Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]])], potential, RelaxSettings(cell="full"))
    with pytest.raises(TypeError, match="one Atoms: use relax"):
        relax_all(crystals[0], potential)
    with pytest.raises(FileNotFoundError, match="no structure file"):
        relax_all(tmp_path / "none.xyz", potential)


def test_a_calculation_that_breaks_on_the_way_says_when(potential, crystals, monkeypatch):
    from ase_equinn import relax_batch

    real, calls = relax_batch.evaluate_with, []

    def evaluate_with(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("structure 2: atoms 0 and 1 are 0 A apart")
        return real(*arguments, **named)

    monkeypatch.setattr(relax_batch, "evaluate_with", evaluate_with)
    with pytest.raises(RunError, match="stopped after step 2: structure 2: atoms 0 and 1"):
        relax_all(crystals, potential)


def test_the_command(crystals, tmp_path):
    """equinn relax --all: exit status 1 where a structure is not converged, 2 for what cannot be done."""
    from typer.testing import CliRunner

    from ase_equinn import SchNet
    from ase_equinn.cli import app

    with torch.random.fork_rng():
        torch.manual_seed(0)
        Potential(SchNet((29,), 4.0, n_channels=8, n_layers=1, n_basis=8), scale=1e-3).save(tmp_path / "tiny")
    write(tmp_path / "start.xyz", crystals[:3])

    def equinn(*arguments):
        common = ("relax", tmp_path / "tiny", tmp_path / "start.xyz", "--all", "--out", tmp_path / "out")
        return CliRunner().invoke(app, [str(a) for a in (*common, *arguments)], env={"COLUMNS": "200"})

    result = equinn("--steps", 0, "--fmax", 1e-6)
    assert result.exit_code == 1 and "of 3 structures relaxed, in at most 0 steps" in result.stdout
    assert len(read(tmp_path / "out/relaxed.xyz", ":")) == 3
    result = equinn()
    assert result.exit_code == 2 and "relaxed.xyz exists" in result.stderr
    result = equinn("--resume")
    assert result.exit_code == 2 and "no restart file" in result.stderr
    result = equinn("--overwrite", "--fmax", 10)
    assert result.exit_code == 0 and "3 of 3 structures relaxed" in result.stdout
