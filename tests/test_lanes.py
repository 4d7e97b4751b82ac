"""Numbers moved between lanes: sums of many vectors and transposition, against numpy, for every vector size of CPUs."""

import numpy as np
import pytest

from ase_equinn.ops.emitter import Emitter
from ase_equinn.ops.jit import compile_function
from ase_equinn.ops.lanes import sums_of, transpose, widen

SHAPES = [(bits, size // bits) for bits in (32, 64) for size in (128, 256, 512)]


def run(emitter: Emitter, source: np.ndarray, n_out: int) -> np.ndarray:
    out = np.full((n_out, emitter.lanes), np.nan, source.dtype)
    compile_function(emitter.name, emitter.finish(), 2, 0)(source.ctypes.data, out.ctypes.data)
    return out


def numbers(bits: int, *shape: int) -> np.ndarray:
    """Small integers: their sums are exact in any order."""
    return np.random.default_rng(0).integers(-50, 50, shape).astype(f"f{bits // 8}")


@pytest.mark.parametrize("bits, lanes", SHAPES)
def test_sums_of_any_number_of_vectors(bits, lanes):
    for n in {1, 2, 3, lanes // 2 + 1, lanes - 1, lanes} & set(range(1, lanes + 1)):
        e, source = Emitter("sums", 2, 0, bits, lanes), numbers(bits, n, lanes)
        total, places = sums_of(e, [e.load(e.pointers[0], k * lanes, lanes) for k in range(n)])
        e.store(total, e.pointers[1], 0)
        assert np.array_equal(run(e, source, 1)[0, places], source.sum(1))


@pytest.mark.parametrize("bits, lanes", SHAPES)
def test_transpose(bits, lanes):
    e, source = Emitter("transpose", 2, 0, bits, lanes), numbers(bits, lanes, lanes)
    for k, column in enumerate(transpose(e, [e.load(e.pointers[0], k * lanes, lanes) for k in range(lanes)])):
        e.store(column, e.pointers[1], k * lanes)
    assert np.array_equal(run(e, source, lanes), source.T)


@pytest.mark.parametrize("bits, lanes", SHAPES)
def test_widen_appends_zeros(bits, lanes):
    for width in (1, lanes // 2, lanes):
        e, source = Emitter("widen", 2, 0, bits, lanes), numbers(bits, lanes)
        e.store(widen(e, e.load(e.pointers[0], 0, width), width), e.pointers[1], 0)
        assert np.array_equal(run(e, source, 1)[0], np.where(np.arange(lanes) < width, source, 0))
