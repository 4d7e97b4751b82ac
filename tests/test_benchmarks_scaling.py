"""benchmarks/scaling_model.py counts what halo.Pieces does and finds its own constants; lammps_scaling.py runs."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from ase_equinn.engines.halo import Range, _steps

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import scaling_model

    return scaling_model


def test_volume_around_a_box(model):
    """Against points on a grid."""
    sides, d, h = (2.0, 3.0, 5.0), 1.5, 0.05
    axes = [np.arange(-d - h / 2, side + d + h, h) for side in sides]
    outside = [np.maximum(np.maximum(-x, x - side), 0.0) ** 2 for x, side in zip(axes, sides)]
    inside = outside[0][:, None, None] + outside[1][None, :, None] + outside[2][None, None, :] <= d**2
    # The boundary has an area of 100 A^2; half a cell there, were all errors of one sign, is 2 %. They are not.
    assert model.around(sides, d) == pytest.approx(inside.sum() * h**3, rel=2e-3)
    assert model.around(sides, 0.0) == pytest.approx(30.0)


def test_atoms_of_the_layers_are_those_of_the_pieces(model):
    """A core of 4096 silicon atoms: atoms met in 1, 2, 3 steps of cutoff + skin lie within so many cutoffs."""
    atoms = bulk("Si", a=model.CELL, cubic=True) * (16, 16, 16)
    atoms.rattle(0.05, seed=0)
    edge = 4 * model.CELL - 0.7  # between planes of atoms
    core = ((atoms.positions > edge) & (atoms.positions < edge + 8 * model.CELL)).all(1)
    positions = torch.from_numpy(np.concatenate([atoms.positions[core], atoms.positions[~core]]))
    met, _ = _steps(positions, int(core.sum()), [Range(5.0, 3)], 1.0)
    found = model.work((8 * model.CELL,) * 3, model.Potential(3), model.Setting())
    assert int(core.sum()) == pytest.approx(found.own, rel=1e-9)
    # Steps end at atoms, so short of the reach of 6 A: 5 A a step, as neighbours stand in this crystal.
    assert sum(int((met <= k).sum()) for k in range(3)) == pytest.approx(found.layers, rel=0.04)
    assert int((met <= 3).sum()) == pytest.approx(found.listed, rel=0.04)


def test_pieces_cost_what_their_halos_do(model):
    side, potential = model.cube(100_000), model.Potential(2)
    whole = model.work((side,) * 3, potential, model.Setting(piece=100_001))
    eighths = model.work((side,) * 3, potential, model.Setting(piece=12_501))
    one = model.work((side / 2,) * 3, potential, model.Setting(piece=100_001))
    assert whole.own == pytest.approx(100_000)
    assert eighths.layers == pytest.approx(8 * one.layers)
    assert eighths.layers > 1.1 * whole.layers
    assert eighths.ghosts == whole.ghosts


def test_constants_are_found_again(model):
    """Runs that cost exactly what the model says."""
    potential = model.Potential(3)
    constants = model.Constants(layer=8e-6, listed=2e-7, ghost=1e-7, rest=5e-7, renewal=1.5e-5)
    runs = []
    for n in (10, 16, 20):
        run = {"cells": [n, n, n], "alone": True, "skin": 1.0, "piece": 50_000}
        done = model.work(model.sides_of(run | {"ranks": [0, 0]}), potential, model.setting_of(run))
        spent = model.cost(done, constants)
        quick = {"wait": 1e-4, "transfer": 2e-4, "report": 3e-4, "refresh": 1e-4}
        parts = {"model": spent["model"], "list": spent["list"], "exchange": spent["ghosts"] + 3e-4, **quick}
        callback = sum(spent.values()) - 0.01
        first = {"callback": callback + constants.renewal * done.listed - 0.02, "before": 0.02}
        rank = {"step": sum(spent.values()) + 7e-4, "parts": {**parts, "callback": callback}, "first": first}
        runs.append(run | {"ranks": [rank, rank]})
    assert model.calibrate(runs, potential) == pytest.approx(constants)
    rank = runs[0]["ranks"][0]
    assert sum(model.parts_of(rank).values()) == pytest.approx(rank["step"])


def test_atoms_needed_for_an_efficiency(model):
    constants = model.Constants(layer=8e-6, listed=2e-7, ghost=1e-7, rest=5e-7, renewal=1.5e-5)
    arguments = model.Potential(2), model.Setting(piece=10**9), constants, model.Network(1e9, 2e-6), 50
    n = model.atoms_needed(0.8, *arguments)
    reached = model.ideal(n, arguments[0], constants) / model.step(1024 * n, 1024, *arguments)
    assert 0.8 <= reached < 0.803
    assert model.atoms_needed(0.9, *arguments) > n
    few = model.Potential(3), model.Setting(piece=1000), *arguments[2:]
    assert model.atoms_needed(0.8, *few) is None


@pytest.mark.skipif(not (find_spec("lammps") and find_spec("mpi4py")), reason="no LAMMPS")
def test_measurement_and_prediction_run(model, tmp_path):
    """Times are whatever they are; the parts add up, and the sizes are those of the crystal."""
    file, environment = tmp_path / "runs.json", {**os.environ, "OMP_NUM_THREADS": "1"}
    options = "--model schnet --cells 2 --runs alone,two --steps 3 --json".split()
    command = [sys.executable, str(FOLDER / "lammps_scaling.py"), *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n| two | 2 |") == 2
    alone, two = json.loads(file.read_text())["runs"]
    assert [rank["own"] for rank in alone["ranks"]] == [64, 64]
    assert sum(rank["own"] for rank in two["ranks"]) == 128
    for rank in two["ranks"]:
        parts, layers = model.parts_of(rank), [n for n, _ in rank["layers"]]
        assert sum(parts.values()) == pytest.approx(rank["step"])
        assert all(seconds >= 0 for seconds in parts.values())
        assert layers[-1] == rank["own"] and layers == sorted(layers, reverse=True)
        assert layers[0] <= rank["atoms"] <= rank["own"] + rank["ghosts"]
    command = [sys.executable, str(FOLDER / "scaling_model.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("\n| 1024 |") == 4
