"""The filter of kept pairs: kernels give torch's bits, write nothing beyond their arrays, and lend memory with care."""

import copy
import gc
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ase_equinn import neighbors_filter
from ase_equinn.graph import graph_and_vectors
from ase_equinn.neighbors import NeighborList, neighbor_list
from ase_equinn.neighbors_filter import Memory, NativeFilter, TorchFilter, has_kernels
from ase_equinn.ops import jit
from ase_equinn.ops.neighbor_kernels import FilterKernel

NUMBER = st.floats(-20, 20, allow_subnormal=False)


def assert_equal(pairs, expected):
    for got, want in zip(pairs, expected, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and got.is_contiguous()
        assert torch.equal(got, want)


@st.composite
def kept_pairs(draw):
    """Any pairs of up to 6 atoms, some atoms without one, shifts small or huge; positions, cell, cutoff."""
    n_atoms, n_pairs = draw(st.integers(1, 6)), draw(st.integers(0, 40))
    ends = draw(arrays(np.int64, (2, n_pairs), elements=st.integers(0, n_atoms - 1)))
    ends[0].sort()
    reach = draw(st.sampled_from([1, 3, 2**30]))
    shift = draw(arrays(np.int64, (n_pairs, 3), elements=st.integers(-reach, reach)))
    positions, cell = (draw(arrays(np.float64, (n, 3), elements=NUMBER)) for n in (n_atoms, 3))
    return torch.tensor(ends), torch.tensor(shift), torch.tensor(positions), cell, draw(st.floats(0.1, 60))


@given(kept_pairs())
@settings(max_examples=300, deadline=None)
def test_kernel_gives_the_bits_of_torch(kept):
    edge_index, shift, positions, cell, cutoff = kept
    assert has_kernels()
    found, nearest = NativeFilter(edge_index, shift, positions).within(cutoff, positions, cell, Memory())
    expected, _ = TorchFilter(edge_index, shift, positions).within(cutoff, positions, cell, Memory())
    assert_equal(found, expected)
    if len(found.vectors):
        x, y, z = expected.vectors.T
        assert nearest == math.sqrt((x * x + y * y + z * z).min())
    else:
        assert nearest >= cutoff * (1 - 1e-15)


def crowd(n_atoms=40, seed=0):
    rng = np.random.default_rng(seed)
    cell = np.diag([6.0, 7.0, 8.0]) + rng.uniform(-1, 1, (3, 3))
    return rng.uniform(0, 7, (n_atoms, 3)), cell, np.array([True, True, False])


def without_kernels(monkeypatch):
    monkeypatch.setattr(neighbors_filter, "has_kernels", lambda: False)


def test_lists_with_and_without_kernels_agree(monkeypatch):
    """Kept for several steps of moving atoms and a straining cell: pairs, vectors and the steps that need a build."""
    positions, cell, pbc = crowd()
    rng = np.random.default_rng(1)
    steps = [(positions + 0.05 * k * rng.normal(size=positions.shape), cell * (1 + 0.002 * k), pbc) for k in range(12)]
    native = NeighborList(3.0, skin=0.6)
    found = [(native.update(*step), native.n_builds) for step in steps]
    without_kernels(monkeypatch)
    plain = NeighborList(3.0, skin=0.6)
    for step, (pairs, n_builds) in zip(steps, found, strict=True):
        assert_equal(pairs, plain.update(*step))
        assert n_builds == plain.n_builds
    assert 1 < native.n_builds < len(steps) and plain.nearest is None
    assert native.nearest == pytest.approx(pairs.vectors.norm(dim=1).min().item(), rel=1e-15)


def test_any_layout_of_the_input():
    """Kernels read addresses: strided and transposed arrays must arrive as the numbers that they hold."""
    positions, cell, pbc = crowd()
    expected = neighbor_list(positions, cell, pbc, 3.0)
    strided = torch.zeros((40, 7), dtype=torch.float64)[:, ::2][:, 1:]
    strided[:] = torch.from_numpy(positions)
    for places in (strided, torch.from_numpy(np.asfortranarray(positions)), positions[::-1].copy()[::-1]):
        kept = NeighborList(3.0, skin=0.5)
        for _ in range(2):
            assert_equal(kept.update(places, np.asfortranarray(cell), pbc), expected)


@pytest.mark.parametrize("n_atoms", [0, 1, 2])
def test_empty(n_atoms):
    """No atoms, or none with a neighbour: first by a build, then kept."""
    apart = NeighborList(2.0, skin=1.0)
    for _ in range(2):
        pairs = apart.update(torch.arange(3.0 * n_atoms).reshape(n_atoms, 3) * 100, np.eye(3), False)
        assert pairs.edge_index.shape == (2, 0) and pairs.vectors.shape == pairs.shift.shape == (0, 3)
        assert pairs.row_ptr.tolist() == [0] * (n_atoms + 1)
    assert apart.n_builds == 1 and apart.nearest == np.inf
    near = NeighborList(2.0, skin=1.0)
    pairs = near.update(torch.tensor([[0.0, 0, 0], [2.5, 0, 0]]), np.eye(3), False)
    assert pairs.edge_index.shape == (2, 0) and near.nearest == 2.5  # kept, but too long


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_written_beyond_the_arrays(seed):
    """Every array stands alone between guards; those marked + in the kernel's docstring have one number more."""
    rng = np.random.default_rng(seed)
    n, k = 5, [0, 23, 64][seed]
    centre = np.sort(rng.integers(0, n, k))
    kept = np.concatenate([rng.integers(-1, 2, (k, 3)), rng.integers(0, n, (k, 1))], axis=1).astype(np.int32)
    inputs = [rng.uniform(0, 3, (n, 3)), np.append(np.pad(np.eye(3) * 3, ((0, 0), (0, 1))), 9.0)]
    inputs += [np.searchsorted(centre, np.arange(n + 1)), kept]
    sizes = dict(padded=(4 * n, float), index=(2 * k, np.int64), shift=(3 * k + 1, np.int32))
    sizes |= dict(vectors=(3 * k + 1, float), row_ptr=(n + 1, np.int64), nearest=(1, float))
    outputs = [np.full(size + 16, 77, dtype=dtype) for size, dtype in sizes.values()]
    kernel = FilterKernel()
    function = jit.compile_function(kernel.name, kernel.source(), kernel.n_pointers, kernel.n_integers)
    function(*(x.ctypes.data for x in inputs), *(x[8:].ctypes.data for x in outputs), 0, n, k)
    for array in outputs:
        assert (array[:8] == 77).all() and (array[-8:] == 77).all()
    assert outputs[4][8 + n] <= k


STRAIN = np.eye(3) + 0.1 * np.arange(9.0).reshape(3, 3)


@pytest.mark.parametrize("transform", [None, STRAIN], ids=["same cell", "strained"])
def test_farthest_move(transform):
    rng = np.random.default_rng(2)
    origin, positions = (torch.from_numpy(rng.normal(size=(17, 3))) for _ in range(2))
    none = torch.zeros((2, 0), dtype=torch.int64), torch.zeros((0, 3), dtype=torch.int64)
    native, plain = (kind(*none, origin) for kind in (NativeFilter, TorchFilter))
    u = positions.numpy() @ (np.eye(3) if transform is None else transform) - origin.numpy()
    expected = np.linalg.norm(u - u.mean(0), axis=1).max()
    assert native.farthest_move(positions, transform) == pytest.approx(expected, rel=1e-13)
    assert plain.farthest_move(positions, transform) == pytest.approx(expected, rel=1e-13)
    for atom, value in ((0, np.nan), (5, np.inf), (16, -np.inf)):
        spoiled = positions.clone()
        spoiled[atom, 1] = value
        assert not np.isfinite(native.farthest_move(spoiled, transform))
        assert not np.isfinite(plain.farthest_move(spoiled, transform))


# Memory that is lent again


HOLDS = {
    "edge_index": lambda pairs: pairs.edge_index,
    "shift": lambda pairs: pairs.shift,
    "row_ptr": lambda pairs: pairs.row_ptr,
    "vectors": lambda pairs: pairs.vectors,
    "a row": lambda pairs: pairs.edge_index[1],
    "a transposed slice": lambda pairs: pairs.vectors[3:7].T,
    "as numpy": lambda pairs: torch.from_numpy(pairs.vectors.numpy()[2:]),
    "its bytes": lambda pairs: torch.frombuffer(memoryview(pairs.shift.numpy()), dtype=torch.int32),
    "detached": lambda pairs: pairs.vectors.detach().view(-1),
    "for autograd": lambda pairs: pairs.vectors.requires_grad_().square().sum().grad_fn.next_functions[0][0],
}


def value(held):
    """A tensor; for autograd the one that is saved for the backward pass."""
    return held if isinstance(held, torch.Tensor) else held._saved_self


@pytest.mark.parametrize("how", HOLDS)
def test_what_a_caller_holds_survives_later_updates(how):
    """However little of a result is held, and as whatever it is held, no later update overwrites it."""
    positions, cell, pbc = crowd()
    kept, held = NeighborList(3.0, skin=1.0), []
    for k in range(6):
        held.append(HOLDS[how](kept.update(positions + 0.02 * k * np.sin(positions), cell * (1 + 1e-3 * k), pbc)))
        if k == 0:
            before = copy.deepcopy(value(held[0]).detach())
        gc.collect()
    assert kept.n_builds == 1
    assert torch.equal(value(held[0]), before) and value(held[0]).data_ptr() != value(held[1]).data_ptr()


def test_memory_is_lent_again_when_nothing_refers_to_it():
    memory = Memory()
    first = memory.take(1000)
    address, view = first[1], np.ndarray((4,), np.int32, first[0], 16)
    del first
    assert memory.take(1000)[1] != address
    assert memory.take(1100)[1] != address  # the view still holds it
    del view
    assert memory.take(900)[1] == address
    assert memory.take(10_000)[1] != address


def test_steps_need_no_new_memory():
    """As in MD, where the last result is dropped before or after the next update."""
    positions, cell, pbc = crowd()
    for held in (0, 1):
        kept, results, addresses = NeighborList(3.0, skin=1.0), [], set()
        for k in range(8):
            results.append(kept.update(positions + 1e-3 * k * np.sin(positions), cell, pbc))
            addresses.add(results[-1].vectors.data_ptr())
            del results[: len(results) - held]
        assert len(addresses) == 1 + held and kept.n_builds == 1


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies_share_no_memory(duplicate):
    positions, cell, pbc = crowd()
    kept = NeighborList(3.0, skin=1.0)
    kept.update(positions, cell, pbc)
    other = duplicate(kept)
    mine = kept.update(positions, cell, pbc)
    expected = copy.deepcopy(mine)
    other.update(positions + 0.01 * np.sin(positions), cell, pbc)
    assert_equal(mine, expected)
    assert kept.n_builds == other.n_builds == 1


def test_graphs_of_a_calculator_survive():
    """The same through `graph_and_vectors`."""
    positions, cell, pbc = crowd()
    atoms, kept = Atoms("Si40", positions, cell=cell, pbc=pbc), NeighborList(3.0, skin=1.0)
    first = graph_and_vectors(atoms, 3.0, neighbors=kept)
    expected = copy.deepcopy(first)
    for _ in range(3):
        atoms.positions += 0.01 * np.sin(atoms.positions)
        graph_and_vectors(atoms, 3.0, neighbors=kept)
    assert torch.equal(first[1], expected[1])
    assert all(torch.equal(a, b) for a, b in zip(first[0][:-1], expected[0][:-1], strict=True))


# Where kernels cannot be had


@pytest.fixture
def forget():
    """The kernels are compiled anew before and after the test."""
    caches = neighbors_filter._compiled, neighbors_filter.has_kernels
    [cache.cache_clear() for cache in caches]
    yield
    [cache.cache_clear() for cache in caches]


def refuse(*arguments):
    raise RuntimeError("no target for this CPU")


def wrong(*arguments):
    return lambda *arguments: None


@pytest.mark.parametrize(("broken", "reason"), [(refuse, "no target for this CPU"), (wrong, "")])
def test_kernels_that_cannot_be_had_are_not_needed(broken, reason, forget, monkeypatch, caplog):
    expected = neighbor_list(*crowd(), 3.0)
    [cache.cache_clear() for cache in (neighbors_filter._compiled, neighbors_filter.has_kernels)]
    monkeypatch.setattr(jit, "compile_function", broken)
    with caplog.at_level(logging.WARNING):
        found = neighbor_list(*crowd(), 3.0)
    assert_equal(found, expected)
    assert "neighbour lists are filtered by torch" in caplog.text and reason in caplog.text
    assert not has_kernels()
