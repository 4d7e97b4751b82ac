"""Triton kernels: against the reference in Triton's interpreter, through its compiler without a GPU, and on one.

The interpreter is chosen when triton is imported, so those cases (triton_cases) run in one process of their own.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
import triton_cases as cases
from ase.build import bulk

from ase_equinn.calculator import EquiCalculator
from ase_equinn.irreps import Irreps
from ase_equinn.ops.conv import chosen_backend
from ase_equinn.ops.conv_triton_kernels import ConvSource
from ase_equinn.ops.conv_triton_parts import Kind
from ase_equinn.ops.paths import ConvPaths
from ase_equinn.ops.product_kernels import Variant
from ase_equinn.ops.product_table import ProductTable
from ase_equinn.ops.product_triton_kernels import ProductSource
from ase_equinn.ops.triton_source import channel_blocks, installed, jit_function
from ase_equinn.potential import Potential

INSTALLED = installed()
needs_triton = pytest.mark.skipif(not INSTALLED, reason="triton is not installed: pip install ase_equinn[triton]")
OLD = INSTALLED and tuple(map(int, version("triton").split(".")[:2])) < (3, 9)
ROUND_OFF = 1e-12  # of the largest number of a tensor, in float64: sums in another order, derivatives to second order
SINGLE = 2e-5  # the same in float32


@needs_triton
@pytest.mark.skipif(OLD, reason="the interpreter of triton before 3.9 does not run with numpy 2.4")
def test_interpreted_kernels_equal_the_reference():
    """Results and derivatives to second order; one test, so that one process runs them all."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, cases.__file__]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout)
    assert len(errors) == 6 + len(cases.CONVOLUTIONS) + len(cases.PRODUCTS) + len(cases.MODELS)
    wrong = {name: error for name, error in errors.items() if not error <= (SINGLE if "float32" in name else ROUND_OFF)}
    assert not wrong


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Kernels are compiled, not found in a user's cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(name, source, types):
    """What Triton's compiler makes of a kernel for an H100 or H200; needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel = jit_function(name, source)
    options = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
    return compile(ASTSource(kernel, types, {}), target=GPUTarget("cuda", 90, 32), options=options).asm


@needs_triton
@pytest.mark.parametrize("name, bits", [("forward", 32), ("edges", 64), ("neighbours", 64), ("table", 32)])
def test_convolution_kernels_pass_the_compiler(name, bits, own_cache):
    paths = ConvPaths(Irreps("3x0e+2x1o"), 1, Irreps("1x0e+1x1o"))
    source = ConvSource(paths, Kind(name, dual=True, table_tangent=True, tables=True), 256, 5 / 255, bits)
    integers = {"begin", "neighbour", "order", "centre", "first"}
    types = {a: "*i64" if a in integers else f"*fp{bits}" for a in source.arguments()}
    ptx = compiled(source.kind.function, source.text(), types)["ptx"]
    assert f"fma.rn.f{bits}" in ptx
    assert "atom." not in ptx and "red." not in ptx  # results do not depend on the order in which programs end
    assert bits == 32 or ".f32" not in ptx  # no constant lost digits


@needs_triton
@pytest.mark.parametrize("backward", [False, True])
def test_product_kernels_pass_the_compiler(backward, own_cache):
    table = ProductTable(Irreps("3x0e+3x1o"), Irreps("1x0e+1x1o"), 2)
    source = ProductSource(table, Variant(backward, True, True, weight_gradient=backward), 64)
    types = {a: {"species": "*i64", "n_species": "i32"}.get(a, "*fp64") for a in source.arguments()}
    ptx = compiled(source.variant.name, source.text(), types)["ptx"]
    assert "fma.rn.f64" in ptx and ".f32" not in ptx and "atom." not in ptx


def test_blocks_cover_the_channels():
    assert channel_blocks(1) == [(0, 1)] and channel_blocks(3) == [(0, 4)] and channel_blocks(64) == [(0, 64)]
    assert channel_blocks(130) == [(0, 64), (64, 64), (128, 64)] and channel_blocks(40, 32) == [(0, 32), (32, 32)]


def test_which_device_runs_them(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert chosen_backend("auto", cuda) == ("triton" if INSTALLED else "reference")
    assert chosen_backend("triton", cuda) == "triton" and chosen_backend("auto", cpu) == "llvm"
    with pytest.raises(ValueError, match="'triton' runs on CUDA devices, the tensors are on cpu"):
        chosen_backend("triton", cpu)
    with pytest.raises(ValueError, match="'llvm' runs on the CPU, the tensors are on cuda"):
        chosen_backend("llvm", cuda)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen_backend("triton", cpu) == "triton" and chosen_backend("auto", cpu) == "llvm"


def test_without_triton_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"pip install .*ase_equinn\[triton\]"):
        jit_function("nothing", "")


# with a GPU

LARGER = {"device": "cuda", "n_atoms": 50}


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, ROUND_OFF), (torch.float32, SINGLE)])
@pytest.mark.parametrize("case", cases.CONVOLUTIONS)
def test_convolution_on_a_gpu(case, dtype, tolerance):
    assert cases.compare(cases.convolution, case, n_edges=900, n_knots=64, dtype=dtype, **LARGER) <= 10 * tolerance


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, ROUND_OFF), (torch.float32, SINGLE)])
@pytest.mark.parametrize("case", cases.PRODUCTS)
def test_product_on_a_gpu(case, dtype, tolerance):
    assert cases.compare(cases.symmetric_product, case, dtype=dtype, **LARGER) <= 10 * tolerance


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-3)])
@pytest.mark.parametrize("case", cases.MODELS)
def test_forces_and_training_gradients_of_models_on_a_gpu(case, dtype, tolerance):
    assert cases.compare(cases.model, case, n_edges=900, dtype=dtype, training=True, **LARGER) <= tolerance


@pytest.mark.gpu
@needs_triton
def test_the_same_input_gives_the_same_bits_on_a_gpu():
    sizes = {"n_edges": 900, "n_knots": 64, **LARGER}
    runs = [cases.convolution("different multiplicities", "triton", **sizes) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again))


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("case", cases.MODELS)
def test_calculator_on_a_gpu(case, dtype, tolerance):
    """Energy, forces and stress along a path of structures, so that recorded graphs are replayed, against the CPU."""
    torch.manual_seed(0)
    potential = Potential([cases.MODELS[case]()])
    calc = EquiCalculator(potential, device="cuda", dtype=dtype)
    reference = EquiCalculator(potential, device="cpu", dtype="float64", backend="reference")
    assert calc.backend == "triton"
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.numbers[::3] = 8
    for step in range(6):
        atoms.rattle(0.02, seed=step)
        ours, right = (c.get_property("forces", atoms) for c in (calc, reference))
        assert abs(ours - right).max() < tolerance * max(1.0, abs(right).max())
        ours, right = (c.get_property("stress", atoms) for c in (calc, reference))
        assert abs(ours - right).max() < tolerance * abs(right).max()
    assert calc.evaluators[0].problem == "" and calc.evaluators[0]._replay is not None
