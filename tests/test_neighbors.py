"""Pairs are compared with a sum over explicit images, with ASE and with matscipy; the skin with no skin."""

import copy
import pickle
import sys
from unittest import mock

import ase.neighborlist
import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ase_equinn import neighbors
from ase_equinn.neighbors import NeighborList, complete_cell, neighbor_list
from ase_equinn.neighbors_search import tree_pairs

try:
    import torch_cluster  # noqa: F401
except ImportError:
    CLUSTER = pytest.mark.skip(reason="torch-cluster, an optional package, is not installed")
else:
    CLUSTER = ()
SEARCHES = ["vesin", pytest.param("torch_cluster", marks=CLUSTER), "tree"]  # tree: what vesin_pairs falls back to
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MASKS = [(bool(m & 1), bool(m & 2), bool(m & 4)) for m in range(8)]


def find(search, positions, cell, pbc, cutoff):
    if search != "tree":
        return neighbor_list(positions, cell, pbc, cutoff, backend=search)
    with mock.patch.dict(neighbors.BACKENDS, vesin=tree_pairs):
        return neighbor_list(positions, cell, pbc, cutoff)


def brute_force(positions, cell, pbc, cutoff):
    """i, j and S of all pairs, sorted, by trying every image that the cell's heights allow; and min |d - cutoff|."""
    pbc = np.array(pbc)
    reach = np.zeros(3, dtype=int)
    if pbc.any():
        rows = cell[pbc]
        dual = np.linalg.inv(rows @ rows.T)
        place = positions @ rows.T @ dual
        reach[pbc] = np.ceil(cutoff * np.sqrt(np.diag(dual)) + np.ptp(place, axis=0)).astype(int) + 1
    shifts = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in reach), indexing="ij"), -1).reshape(-1, 3)
    moved = shifts @ np.where(pbc[:, None], cell, 0.0)
    distance = np.linalg.norm(positions[None, :, None] - positions[:, None, None] + moved[None, None], axis=-1)
    itself = np.eye(len(positions), dtype=bool)[:, :, None] & ~shifts.any(1)
    i, j, s = np.nonzero((distance < cutoff) & ~itself)
    return i, j, shifts[s], np.abs(distance - cutoff).min()


def assert_same(pairs, i, j, shift):
    np.testing.assert_array_equal(pairs.edge_index.cpu(), np.stack([i, j]))
    np.testing.assert_array_equal(pairs.shift.cpu(), shift)
    np.testing.assert_array_equal(pairs.row_ptr.cpu().diff(), np.bincount(i, minlength=len(pairs.row_ptr) - 1))


def assert_equal(pairs, expected):
    for got, want in zip(pairs, expected, strict=True):
        assert got.dtype == want.dtype and got.device == want.device
        assert torch.equal(got, want)


@st.composite
def structures(draw):
    """Up to 5 atoms, anywhere, perhaps two at one place; triclinic cells of either hand, dummy rows where allowed."""
    pbc = np.array(draw(st.sampled_from(MASKS)))
    cell = np.diag(draw(arrays(np.float64, 3, elements=st.floats(1.5, 7))))
    cell[[1, 2, 2], [0, 0, 1]] = draw(arrays(np.float64, 3, elements=st.floats(-2, 2)))
    angles = draw(arrays(np.float64, 2, elements=st.floats(0, 6.28)))
    for (x, y), (cos, sin) in zip(((0, 1), (1, 2)), zip(np.cos(angles), np.sin(angles), strict=True), strict=True):
        turn = np.eye(3)
        turn[[x, x, y, y], [x, y, x, y]] = cos, -sin, sin, cos
        cell = cell @ turn
    cell = cell[draw(st.permutations(range(3)))] * draw(st.sampled_from([1.0, -1.0]))
    dummy = draw(st.sampled_from(["as drawn", "zero", "parallel"]))
    cell[~pbc] = {"as drawn": cell[~pbc], "zero": 0.0, "parallel": cell[pbc][0] if pbc.any() else 1.0}[dummy]
    n_atoms = draw(st.integers(1, 5))
    positions = draw(arrays(np.float64, (n_atoms, 3), elements=st.floats(-12, 12)))
    if draw(st.booleans()):
        positions[-1] = positions[0]
    return positions, cell, pbc, draw(st.floats(0.5, 4.5))


@pytest.mark.parametrize("search", SEARCHES)
@given(structures())
@settings(max_examples=120, deadline=None)
def test_equals_brute_force(search, structure):
    positions, cell, pbc, cutoff = structure
    *expected, margin = brute_force(positions, cell, pbc, cutoff)
    assume(margin > 1e-9)
    assert_same(find(search, positions, cell, pbc, cutoff), *expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pbc", MASKS, ids=str)
@pytest.mark.parametrize("search", SEARCHES)
def test_equals_brute_force_in_a_crowd(search, pbc, device):
    rng = np.random.default_rng(3)
    cell = np.array([[9.0, 0.3, 0.1], [-2.0, 7.0, 0.4], [1.0, 2.0, -8.0]])
    positions = rng.uniform(-10, 15, (60, 3))
    assert np.linalg.det(cell) < 0
    *expected, margin = brute_force(positions, cell, pbc, 4.0)
    assert margin > 1e-9
    pairs = find(search, torch.tensor(positions, device=device), cell, pbc, 4.0)
    assert pairs.shift.device.type == device
    assert_same(pairs, *expected)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("pbc", MASKS, ids=str)
@pytest.mark.parametrize("distance", [0.0, 1e6])
def test_far_away_and_unwrapped_atoms(search, pbc, distance):
    """Moving everything far off changes nothing; moving atoms by T_i cells changes the shifts by T_i - T_j."""
    rng = np.random.default_rng(5)
    cell = np.array([[5.0, 0.0, 0.0], [1.0, 4.0, 0.0], [-1.0, 0.5, 3.0]])
    positions = rng.uniform(0, 6, (7, 3))
    i, j, shift, margin = brute_force(positions, cell, pbc, 3.5)
    assert margin > 1e-6  # positions of 1e6 A are spaced by 1e-10 A
    lattice = rng.integers(-1000, 1000, (7, 3)) * np.array(pbc)
    moved = positions + lattice @ cell + distance
    expected = shift + lattice[i] - lattice[j]
    order = np.lexsort([*expected.T[::-1], j, i])
    assert_same(find(search, moved, cell, pbc, 3.5), i[order], j[order], expected[order])


@pytest.mark.parametrize("pbc", MASKS, ids=str)
@pytest.mark.parametrize("lengths", [(4.0, 4.0, 4.0), (4.0, 3000.0, 3000.0), (4.0, 4.0, 1e7)])
def test_atoms_lost_in_vacuum(lengths, pbc):
    """Evaporated atoms and flat or long boxes: vesin alone takes minutes for some of these and crashes on others."""
    rng = np.random.default_rng(7)
    cluster = rng.uniform(0, 4, (8, 3))
    positions = np.concatenate([cluster, cluster + [1e5, 0, 0], cluster + [1e5, 1e5, -2e6]])
    periodic = np.array(pbc)
    positions[:, periodic] %= np.array(lengths)[periodic]
    *expected, margin = brute_force(positions, np.diag(lengths), pbc, 3.0)
    assert margin > 1e-8
    assert_same(neighbor_list(positions, np.diag(lengths), pbc, 3.0), *expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("search", SEARCHES)
def test_nothing_is_truncated(search, device):
    """700 atoms within the cutoff of one another, far more than any search's default bound on neighbours."""
    positions = torch.tensor(np.random.default_rng(11).uniform(0, 1, (700, 3)), device=device)
    pairs = find(search, positions, np.zeros((3, 3)), False, 2.0)
    assert pairs.edge_index.shape == (2, 700 * 699)


@pytest.mark.parametrize("search", SEARCHES)
def test_the_cutoff_itself_is_excluded(search):
    positions = np.array([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    assert find(search, positions, np.zeros((3, 3)), False, 5.0).edge_index.shape == (2, 0)
    inside = find(search, positions, np.zeros((3, 3)), False, np.nextafter(5.0, 6.0))
    assert inside.edge_index.tolist() == [[0, 1], [1, 0]]
    chain = find(search, positions[:1], np.diag([2.5, 9.0, 9.0]), (True, False, False), 5.0)
    assert chain.shift.tolist() == [[-1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("origin", [0.0, 1e4, 1e8])
def test_no_pair_is_lost_to_round_off(search, origin):
    """At a cutoff one bit above a pair's distance in float64 the pair is there, at that distance itself it is not."""
    rng = np.random.default_rng(19)
    for _ in range(10):
        cell, shift = rng.uniform(2, 4, 3), rng.integers(-1000, 1000)
        first, second = origin + rng.uniform(0, 4, (2, 3))
        second[0] += shift * cell[0]
        x, y, z = second - first
        x += -shift * cell[0]
        distance = np.sqrt(x * x + y * y + z * z)
        args = np.stack([first, second]), np.diag(cell), (True, False, False)
        while distance**2 <= x * x + y * y + z * z:
            distance = np.nextafter(distance, np.inf)
        pairs = find(search, *args, distance)
        assert [-shift, 0, 0] in pairs.shift[pairs.edge_index[0] < pairs.edge_index[1]].tolist()
        while distance**2 > x * x + y * y + z * z:
            distance = np.nextafter(distance, 0)
        pairs = find(search, *args, distance)
        assert [-shift, 0, 0] not in pairs.shift[pairs.edge_index[0] < pairs.edge_index[1]].tolist()


@pytest.mark.parametrize("search", SEARCHES)
def test_coincident_atoms_are_a_pair(search):
    positions = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    pairs = find(search, positions, np.eye(3) * 9, True, 4.0)
    assert pairs.edge_index.tolist() == [[0, 1], [1, 0]]
    assert pairs.shift.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("n_atoms", [0, 1])
@pytest.mark.parametrize("pbc", [False, True])
def test_no_pairs(search, n_atoms, pbc, device):
    pairs = find(search, torch.zeros((n_atoms, 3), device=device), torch.eye(3) * 9, pbc, 4.0)
    assert pairs.edge_index.shape == (2, 0) and pairs.edge_index.dtype == torch.int64
    assert pairs.shift.shape == (0, 3) and pairs.shift.dtype == torch.int32
    assert pairs.row_ptr.tolist() == [0] * (n_atoms + 1) and pairs.row_ptr.dtype == torch.int64
    assert pairs.edge_index.device.type == pairs.shift.device.type == pairs.row_ptr.device.type == device


def test_convention():
    """edge_index[0] is the centre, [1] the neighbour, r_ij = r_j - r_i + S @ cell: three atoms, all pairs by hand."""
    positions = np.array([[9.5, 0.0, 0.0], [0.5, 0.0, 0.0], [2.4, 0.0, 0.0]])
    pairs = neighbor_list(positions, np.diag([10.0, 0.0, 0.0]), [True, False, False], 2.0)
    assert pairs.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert pairs.shift.tolist() == [[1, 0, 0], [-1, 0, 0], [0, 0, 0], [0, 0, 0]]  # 0.5 - 9.5 + 1 * 10 = 1
    assert pairs.row_ptr.tolist() == [0, 1, 3, 4]
    triclinic = neighbor_list([[0.0, 0.0, 0.0]], [[3.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 9.0]], [0, 1, 0], 3.5)
    assert triclinic.shift.tolist() == [[0, -1, 0], [0, 1, 0]]  # rows of the cell are its vectors: |(1, 3, 0)| = 3.16


SAMPLES = {
    "triclinic silicon": (bulk("Si"), 5.0),
    "rattled silicon": (bulk("Si", cubic=True) * (2, 2, 2), 5.0),
    "slab": (fcc111("Cu", (2, 2, 3), vacuum=8.0), 4.5),
    "molecule": (molecule("C6H6", vacuum=3.0), 3.0),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_equals_ase_and_matscipy(name):
    matscipy = pytest.importorskip("matscipy.neighbours")
    atoms, cutoff = SAMPLES[name]
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=1)  # shells of the perfect crystal lie at the cutoff
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    for other in (ase.neighborlist.neighbor_list, matscipy.neighbour_list):
        i, j, shift = other("ijS", atoms, cutoff=cutoff)
        order = np.lexsort([*shift.T[::-1], j, i])
        assert len(i)
        assert_same(pairs, i[order], j[order], shift[order])


# The skin


def trajectory(seed, n_steps=25):
    """A rattled, drifting, straining crystal; at times pbc flips or an atom appears, leaves or jumps by a cell."""
    rng = np.random.default_rng(seed)
    cell = np.array([[5.0, 0.2, 0.0], [-1.5, 5.5, 0.3], [0.6, 1.0, 6.0]])
    if seed % 2:
        cell = cell[::-1].copy()
    positions = rng.uniform(0, 1, (12, 3)) @ cell
    pbc = np.array(MASKS[seed % 8])
    amplitude = 10.0 ** rng.uniform(-3, -0.7)
    for _ in range(n_steps):
        positions = positions + amplitude * rng.normal(size=positions.shape) + rng.normal(size=3)
        strain = np.eye(3) + rng.choice([0.0, 0.1, 1.0]) * amplitude * 0.2 * rng.normal(size=(3, 3))
        cell = cell @ strain
        if rng.random() < 0.7:
            positions = positions @ strain
        event = rng.integers(0, 25)
        if event == 0:
            pbc = np.array(MASKS[rng.integers(8)])
        elif event == 1:
            positions = np.concatenate([positions, rng.uniform(0, 1, (1, 3)) @ cell])
        elif event == 2:
            positions = positions[1:]
        elif event == 3:
            positions[0] += pbc @ cell
        yield positions, cell.copy(), pbc


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(24))
def test_skin_changes_nothing(seed, device):
    """Not the pairs, not their order: a list with a past equals a fresh one at every step."""
    skinned = NeighborList(3.0, skin=0.8)
    for positions, cell, pbc in trajectory(seed):
        positions = torch.tensor(positions, device=device)
        assert_equal(skinned.update(positions, cell, pbc), neighbor_list(positions, cell, pbc, 3.0))


def test_skin_saves_builds():
    """Fewer than half of the steps above need a build, so that test compares lists that were kept."""
    n_builds = n_steps = 0
    for seed in range(24):
        skinned = NeighborList(3.0, skin=0.8)
        for step in trajectory(seed):
            skinned.update(*step)
            n_steps += 1
        n_builds += skinned.n_builds
    assert 24 < n_builds < n_steps / 2


@pytest.mark.parametrize("pbc", MASKS, ids=str)
def test_drift_and_small_strain_cost_no_build(pbc):
    rng = np.random.default_rng(13)
    cell = np.diag([9.0, 8.0, 7.0]) + rng.uniform(-1, 1, (3, 3))
    positions = rng.uniform(0, 8, (20, 3))
    skinned = NeighborList(4.0, skin=0.5)
    skinned.update(positions, cell, pbc)
    skinned.update(positions + [50.0, -20.0, 3.0], cell, pbc)
    strain = np.eye(3) + 0.02 * rng.uniform(-1, 1, (3, 3))
    if np.all(pbc):  # else the strained atoms are seen as moving in the directions without a cell
        skinned.update(positions @ strain, cell @ strain, pbc)
    dummy = np.where(np.array(pbc)[:, None], cell, 0.0)
    skinned.update(positions, dummy, pbc)
    assert skinned.n_builds == 1


def test_atoms_meeting_halfway():
    """Two atoms just outside cutoff + skin, each moved by just over skin / 2, become a pair: the bound has no slack."""
    apart = 3.0 + 1.0 + 1e-6
    skinned = NeighborList(3.0, skin=1.0)
    positions = np.array([[0.0, 0.0, 0.0], [apart, 0.0, 0.0]])
    assert skinned.update(positions, np.zeros((3, 3)), False).edge_index.shape == (2, 0)
    kept = skinned.update(positions + [[0.49, 0, 0], [-0.49, 0, 0]], np.zeros((3, 3)), False)
    assert kept.edge_index.shape == (2, 0) and skinned.n_builds == 1
    met = skinned.update(positions + [[0.501, 0, 0], [-0.501, 0, 0]], np.zeros((3, 3)), False)
    assert met.edge_index.tolist() == [[0, 1], [1, 0]] and skinned.n_builds == 2


@pytest.mark.parametrize("along", range(3))
def test_cell_bringing_images_together(along):
    """An atom that does not move meets its image when the cell shrinks past cutoff + skin."""
    pbc = np.arange(3) == along
    skinned = NeighborList(3.0, skin=1.0)
    assert skinned.update(np.zeros((1, 3)), np.eye(3) * 4.1, pbc).edge_index.shape == (2, 0)
    assert skinned.update(np.zeros((1, 3)), np.eye(3) * 3.1, pbc).edge_index.shape == (2, 0)
    pairs = skinned.update(np.zeros((1, 3)), np.eye(3) * 2.9, pbc)
    assert pairs.shift[:, along].tolist() == [-1, 1]


def test_cell_change_without_inverse():
    """The wire's axis turns by 90 degrees: no deformation leads from one to the other."""
    skinned = NeighborList(3.5, skin=1.0)
    for axis in range(3):
        pairs = skinned.update(np.zeros((1, 3)), np.roll(np.diag([3.0, 0.0, 0.0]), axis, axis=1), (True, False, False))
        assert pairs.shift.tolist() == [[-1, 0, 0], [1, 0, 0]]
    assert skinned.n_builds == 3


def test_strain_and_motion_share_the_skin():
    """Neither a strain of 15 % nor moving each atom by skin / 4 would make this pair; both do."""
    positions, cell, pbc = np.array([[0.0, 0.0, 0.0], [4.1, 0.0, 0.0]]), np.eye(3) * 20, (True, False, False)
    skinned = NeighborList(3.0, skin=1.0)
    assert skinned.update(positions, cell, pbc).edge_index.shape == (2, 0)
    assert skinned.update(0.85 * positions, 0.85 * cell, pbc).edge_index.shape == (2, 0)
    assert skinned.n_builds == 1
    together = 0.85 * positions + [[0.25, 0, 0], [-0.25, 0, 0]]
    assert skinned.update(together, 0.85 * cell, pbc).edge_index.tolist() == [[0, 1], [1, 0]]


def test_results_are_the_callers_own():
    """Neither input nor output is shared with the list: overwriting either changes no later result."""
    positions, cell = torch.rand((6, 3), dtype=torch.float64) * 4, np.eye(3) * 4
    skinned = NeighborList(3.0, skin=0.5)
    moved = positions.clone()
    first = skinned.update(moved, cell, True)
    expected = copy.deepcopy(first)
    for tensor in first:
        tensor.fill_(7)
    moved += 1e3 * torch.rand((6, 3), dtype=torch.float64)
    cell *= 2.0
    assert_equal(skinned.update(positions, np.eye(3) * 4, True), expected)
    assert skinned.n_builds == 1


def test_copies():
    positions = np.random.default_rng(17).uniform(0, 4, (6, 3))
    skinned = NeighborList(3.0, skin=0.5)
    expected = skinned.update(positions, np.eye(3) * 4, True)
    for other in (copy.deepcopy(skinned), pickle.loads(pickle.dumps(skinned))):
        assert_equal(other.update(positions, np.eye(3) * 4, True), expected)
        assert other.n_builds == 1


def test_single_precision_and_gradients():
    """Distances are those of the given numbers in float64; a tensor that requires a gradient is an ordinary input."""
    positions = torch.rand((6, 3), generator=torch.Generator().manual_seed(1)) * 4
    single = neighbor_list(positions.requires_grad_(), torch.eye(3) * 4, torch.tensor([True, True, False]), 3.0)
    assert not single.edge_index.requires_grad
    assert_equal(single, neighbor_list(positions.detach().double(), np.eye(3) * 4, [1, 1, 0], 3.0))


# Refusals


GOOD = dict(positions=np.arange(6.0).reshape(2, 3), cell=np.eye(3) * 5, pbc=True, cutoff=3.0)
NAN, FLAT = np.array([[0.0, 0, 0], [1, np.nan, 2]]), np.array([[5.0, 0, 0], [0, 5, 0], [5, 5, 0]])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(positions=NAN), r"atom 1 is not finite: \[1.0, nan, 2.0\]"),
        (dict(positions=np.full((2, 3), -np.inf)), "atom 0 is not finite"),
        (dict(positions=np.zeros((2, 2))), r"shape \(n, 3\), got \(2, 2\)"),
        (dict(positions=np.full((1, 3), 1e12)), "atom 0 is too many cells away"),
        (dict(cell=np.zeros((3, 3))), "cell vector 0 is zero"),
        (dict(cell=np.diag([5.0, 5.0, 0.0]), pbc=(False, True, True)), "cell vector 2 is zero"),
        (dict(cell=FLAT), "span no volume"),
        (dict(cell=FLAT[[0, 0, 1]], pbc=(True, True, False)), "span no volume"),
        (dict(cell=np.full((3, 3), np.inf)), "the cell is not finite"),
        (dict(cell=np.diag([5.0, 5.0, np.nan]), pbc=(True, True, False)), "the cell is not finite"),
        (dict(cell=np.ones(3)), r"shape \(3, 3\), got \(3,\)"),
        (dict(pbc=(True, False)), "one bool or three"),
        (dict(cutoff=-1.0), "positive number of A, got -1.0"),
        (dict(cutoff=float("nan")), "positive number of A, got nan"),
        (dict(backend="verlet"), "one of vesin, torch_cluster, got 'verlet'"),
    ],
    ids=str,
)
def test_refusals(bad, message):
    with pytest.raises(ValueError, match=message):
        neighbor_list(**{**GOOD, **bad})


def test_negative_skin():
    with pytest.raises(ValueError, match="skin must be zero or a positive number of A, got -0.1"):
        NeighborList(3.0, skin=-0.1)


def test_a_refusal_leaves_the_list_usable():
    skinned = NeighborList(3.0, skin=0.5)
    expected = skinned.update(GOOD["positions"], GOOD["cell"], True)
    for bad in (dict(positions=NAN), dict(cell=FLAT), dict(cell=np.eye(3) * np.nan)):
        with pytest.raises(ValueError, match="not finite|no volume"):
            skinned.update(**{"positions": GOOD["positions"], "cell": GOOD["cell"], "pbc": True, **bad})
    assert_equal(skinned.update(GOOD["positions"], GOOD["cell"], True), expected)


def test_torch_cluster_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_cluster", None)
    with pytest.raises(ImportError, match="pip install torch-cluster --no-build-isolation"):
        neighbor_list(**GOOD, backend="torch_cluster")


@pytest.mark.parametrize("pbc", MASKS, ids=str)
def test_complete_cell(pbc):
    cell, pbc = np.array([[3.0, 0.1, 0.0], [1.0, -4.0, 0.3], [0.5, 0.6, 5.0]]), np.array(pbc)
    frame = complete_cell(cell, pbc)
    np.testing.assert_array_equal(frame[pbc], cell[pbc])
    dual = frame[~pbc] @ frame.T
    np.testing.assert_allclose(dual, np.eye(3)[~pbc], atol=1e-15)
