"""`equinn calibrate` with three potentials, and the commands that take what it writes."""

import re

import pytest
import torch
import toy
from ase.build import bulk
from ase.io import write
from labelled import copper, save
from test_cli import equinn, refused

from ase_equinn import EquiCalculator, Potential


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    toy.register(monkeypatch)


@pytest.fixture
def members(tmp_path):
    found = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(Potential(toy.Embedded([29], 4.0), scale=0.01).save(tmp_path / f"seed{seed}").parent)
    return found


def test_three_potentials_become_one_file_that_the_commands_take(members, tmp_path):
    valid, out, figure = save(tmp_path / "valid.xyz", copper(6)), tmp_path / "committee", tmp_path / "a.png"
    arguments = "calibrate", *members, "--valid", valid
    result = equinn(*arguments, "-o", out, "--test", valid, "--plot", figure)
    assert re.search(r"valid .* 24 .*\n.*test .* 24 ", result.stdout) and "3 sigma" in result.stdout
    assert [p.name for p in out.iterdir()] == ["model.safetensors"] and figure.read_bytes().startswith(b"\x89PNG")
    shown = equinn("info", out).stdout
    assert "a committee of 3" in shown and "seed2" in shown and "toy_embedded" in shown and "within 2 sigma" in shown

    start = tmp_path / "start.xyz"
    write(start, bulk("Cu", cubic=True))
    calc = EquiCalculator(str(out), device="cpu", guard="stop")
    assert calc.get_property("forces_sigma", bulk("Cu")).shape == (1,)
    assert "6 frames" in equinn("eval", out, valid).stdout
    assert "3 steps" in equinn("md", out, start, "--temperature", 100, "--steps", 3, "--out", tmp_path / "md").stdout
    assert "relaxed" in equinn("relax", out, start, "--out", tmp_path / "relax").stdout
    assert "1 of 1" in equinn("relax", out, start, "--all", "--out", tmp_path / "all").stdout

    again = "calibrate", out, "--valid", valid, "-o", tmp_path / "again"
    assert "written to" in equinn(*again).stdout
    assert "--overwrite" in refused(*again)
    assert "exists: choose another folder, or --overwrite" in refused(*arguments, "-o", out / "model.safetensors")


def test_what_is_refused(members, tmp_path):
    valid, out = save(tmp_path / "valid.xyz", copper(2)), tmp_path / "out"
    rest = "--valid", valid, "-o", out
    assert "a single potential needs --train" in refused("calibrate", members[0], *rest)
    assert "3 to 100 potentials, got 2" in refused("calibrate", *members[:2], *rest)
    assert "--train is for a single potential" in refused("calibrate", *members, *rest, "--train", valid)
    assert "--centres is for a single potential" in refused("calibrate", *members, *rest, "--centres", 9)
    assert "seed7" in refused("calibrate", *members[:2], tmp_path / "seed7", *rest)
    unlabelled = tmp_path / "unlabelled.xyz"
    write(unlabelled, bulk("Cu"))
    assert "no frame has energies or forces" in refused("calibrate", *members, "--valid", unlabelled, "-o", out)
    assert not out.exists()
