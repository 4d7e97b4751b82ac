"""ASE finds the calculator by name, from Python and from its command line, and pays nothing until it is used."""

import os
import subprocess
import sys

import numpy as np
import torch
from ase.io import read, write
from calculator_toys import SPECIES, crystal

from ase_equinn.calculator import EquiCalculator
from ase_equinn.models.schnet import SchNet
from ase_equinn.potential import Potential


def python(*arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout


def test_importing_ase_io_registers_without_torch_or_a_warning(tmp_path):
    code = """
import sys, ase.io
from ase.calculators.calculator import get_calculator_class
from ase.calculators.names import names
found = get_calculator_class("equinn")
print("torch" in sys.modules, "equinn" in names, found.nolabel, found.__module__)
"""
    assert python("-W", "error", "-c", code, cwd=tmp_path).split() == ["False", "True", "True", "ase_equinn.ase_plugin"]


def test_ase_run(tmp_path):
    """`ase run equinn FILE -p ...` writes the energy, forces and stress that the calculator gives in this process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Potential(SchNet(SPECIES, 3.5, 10.0, n_channels=8, n_layers=1, n_basis=8).double()).save(tmp_path / "tiny")
    write(tmp_path / "in.traj", crystal())
    parameters = "model=tiny,dtype=float64,device=cpu"
    # (ASE 3.29 itself leaves an empty file for -o NEW.traj)
    command = ["run", "equinn", "in.traj", "-p", parameters, "-o", "out.json"]
    python("-m", "ase", *command, cwd=tmp_path)
    found = read(tmp_path / "out.json")
    calc = EquiCalculator(tmp_path / "tiny", dtype="float64", device="cpu")
    np.testing.assert_allclose(found.get_forces(), calc.get_forces(crystal()), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.get_stress(), calc.get_stress(crystal()), rtol=0, atol=1e-12)
    assert found.calc.name == "equinn"
