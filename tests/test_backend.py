"""Generated operators are trusted only after they agree with the reference on this machine."""

import logging

import pytest
import torch
from ase.build import bulk

from ase_equinn import backend as backend_module
from ase_equinn.backend import use_backend
from ase_equinn.calculator import EquiCalculator
from ase_equinn.models.nequip import NequIP
from ase_equinn.models.tfn import TFN
from ase_equinn.ops import conv as conv_module
from ase_equinn.potential import Potential


@pytest.fixture
def potential():
    torch.manual_seed(0)
    return Potential([NequIP((8, 14), 4.0, 10.0, irreps_hidden="4x0e+3x1o", radial_mlp=[8])])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_auto_takes_the_generated_kernels(potential, dtype):
    calc = EquiCalculator(potential, dtype=dtype, device="cpu")
    assert calc.backend == "llvm" == EquiCalculator(potential, dtype=dtype, device="cpu", backend="llvm").backend
    reference = EquiCalculator(potential, dtype=dtype, device="cpu", backend="reference")
    assert reference.backend == "reference"
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    scale = abs(reference.get_forces(atoms)).max()
    error = abs(calc.get_forces(atoms) - reference.get_forces(atoms)).max()
    assert 0 < error < {"float32": 1e-5, "float64": 1e-13}[dtype] * scale * 10  # two implementations, round-off apart


def test_a_model_without_such_operators_runs_on_the_reference():
    assert use_backend(Potential([TFN((14,), 4.0)]), "auto") == "reference"


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_kernels_that_fail_are_refused(potential, fault, monkeypatch, caplog):
    right = conv_module.fused

    def wrong(*arguments):
        if fault == "broken":
            raise OSError("no compiler here")
        return [1.01 * block for block in right(*arguments)]

    monkeypatch.setattr(conv_module, "fused", wrong)
    with caplog.at_level(logging.WARNING):
        assert use_backend(potential, "auto") == "reference"
    assert {"wrong": "eV/A off", "broken": "no compiler here"}[fault] in caplog.text
    assert all(module.backend == "reference" for module in potential.modules() if hasattr(module, "backend"))
    with pytest.raises(RuntimeError, match="not to be trusted"):
        use_backend(potential, "llvm")


def test_the_check_sees_every_edge_length(potential):
    graphs, positions = backend_module._cluster(potential)
    assert graphs[0].edge_index.shape[1] > 50 and set(graphs[0].numbers.tolist()) == {8, 14}


def test_bad_name(potential):
    with pytest.raises(ValueError, match="'numba'"):
        use_backend(potential, "numba")
