"""Graph: what from_atoms, edge_vectors and collate promise, to the last bit; what the checks refuse."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from ase_equinn.graph import check_atoms, check_coincident, collate, edge_vectors, from_atoms, graph_and_vectors
from ase_equinn.neighbors import NeighborList

CUTOFF = 4.0


def structures():
    """A tiny triclinic left-handed cell, a slab, a wire far from the origin, a molecule, a lone atom, nothing."""
    rng = np.random.default_rng(2)
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    crystal.set_cell(crystal.cell[[1, 0, 2]] + rng.uniform(-0.2, 0.2, (3, 3)), scale_atoms=True)
    assert crystal.cell.handedness == -1
    wire = Atoms("AuAg", [[1e6, 0, 0], [1e6 + 2, 1, 7]], cell=[0, 0, 5.0], pbc=(False, False, True))
    return [crystal, fcc111("Cu", (2, 2, 3), vacuum=6.0), wire, molecule("CH3CH2OH"), Atoms("He"), Atoms()]


def positions_of(atoms):
    return torch.tensor(atoms.positions)


def assert_equal(graph, expected):
    assert graph.n_graphs == expected.n_graphs
    for got, want in zip(graph[:-1], expected[:-1], strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


def test_convention():
    """(centre, neighbour) and r_ij = r_j - r_i + S @ cell, on a graph whose two ends differ."""
    atoms = Atoms("HLi", [[0.5, 0, 0], [9.0, 0, 0]], cell=[10.0, 0, 0], pbc=(True, False, False))
    graph = from_atoms(atoms, 2.0)
    assert graph.edge_index.tolist() == [[0, 1], [1, 0]]
    assert graph.shift.tolist() == [[-1, 0, 0], [1, 0, 0]]
    assert edge_vectors(graph, positions_of(atoms)).tolist() == [[-1.5, 0, 0], [1.5, 0, 0]]
    assert graph.numbers.tolist() == [1, 3] and graph.row_ptr.tolist() == [0, 1, 2]


@pytest.mark.parametrize("atoms", structures(), ids=lambda atoms: str(atoms.symbols) or "none")
def test_from_atoms(atoms):
    before = atoms.copy()
    graph = from_atoms(atoms, CUTOFF)
    n_atoms, n_edges = len(atoms), graph.edge_index.shape[1]
    shapes = [(n_atoms,), (1, 3, 3), (1, 3), (2, n_edges), (n_edges, 3), (n_atoms + 1,), (n_atoms,)]
    dtypes = [torch.int64, torch.float64, torch.bool, torch.int64, torch.int32, torch.int64, torch.int64]
    assert [x.shape for x in graph[:-1]] == shapes
    assert [x.dtype for x in graph[:-1]] == dtypes
    np.testing.assert_array_equal(graph.cell[0], atoms.cell)
    np.testing.assert_array_equal(graph.pbc[0], atoms.pbc)
    for atom in range(n_atoms):
        assert (graph.edge_index[0, graph.row_ptr[atom] : graph.row_ptr[atom + 1]] == atom).all()
    assert graph.row_ptr[0] == 0 and graph.row_ptr[-1] == n_edges
    graph.numbers.fill_(7), graph.cell.fill_(7), graph.pbc.fill_(True)
    assert atoms == before


@pytest.mark.parametrize("atoms", structures()[:4], ids=lambda atoms: str(atoms.symbols))
def test_edge_vectors_are_exact(atoms):
    """Within 4 units in the last place of the formula in extended precision; below the cutoff; of the opposite edge."""
    graph = from_atoms(atoms, CUTOFF)
    vectors = edge_vectors(graph, positions_of(atoms))
    assert vectors.dtype == torch.float64 and vectors.is_contiguous() and len(vectors)
    i, j = graph.edge_index.numpy()
    long, shift = atoms.positions.astype(np.longdouble), graph.shift.numpy()
    exact = long[j] - long[i] + shift @ atoms.cell.array.astype(np.longdouble)
    scale = np.abs(atoms.positions).max() + (np.abs(shift) @ np.abs(atoms.cell.array)).max()
    assert np.abs(vectors.numpy() - exact).max() < 4 * np.spacing(scale)
    assert (vectors.square().sum(1) < CUTOFF**2).all()
    edges = {(a, b, *s): v for a, b, s, v in zip(i, j, shift.tolist(), vectors.tolist(), strict=True)}
    for (a, b, *s), v in edges.items():
        assert edges[b, a, -s[0], -s[1], -s[2]] == [-x for x in v]


def test_edge_vectors_carry_gradients():
    """dr_ij / dr = +1 at j and -1 at i; dr_ij / dcell = S."""
    atoms = structures()[0]
    graph = from_atoms(atoms, CUTOFF)
    positions, cell = positions_of(atoms).requires_grad_(), graph.cell.clone().requires_grad_()
    weights = torch.rand((graph.edge_index.shape[1], 3), dtype=torch.float64)
    (edge_vectors(graph._replace(cell=cell), positions) * weights).sum().backward()
    expected = torch.zeros_like(positions).index_add(0, graph.edge_index[1], weights)
    expected = expected.index_add(0, graph.edge_index[0], -weights)
    torch.testing.assert_close(positions.grad, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(cell.grad[0], graph.shift.double().T @ weights, rtol=0, atol=1e-12)


def test_collate_equals_singles():
    """Every field, and every edge vector to the last bit, in order; also when collated by parts."""
    samples = structures()
    singles = [from_atoms(atoms, CUTOFF) for atoms in samples]
    graph = collate(singles)
    assert graph.n_graphs == len(samples)
    vectors = edge_vectors(graph, torch.cat([positions_of(atoms) for atoms in samples]))
    first_atom = first_edge = 0
    for index, (atoms, single) in enumerate(zip(samples, singles, strict=True)):
        own = slice(first_atom, first_atom + len(atoms))
        edges = slice(first_edge, first_edge + single.edge_index.shape[1])
        assert torch.equal(graph.numbers[own], single.numbers)
        assert (graph.batch[own] == index).all()
        assert torch.equal(graph.cell[index], single.cell[0]) and torch.equal(graph.pbc[index], single.pbc[0])
        assert torch.equal(graph.edge_index[:, edges] - first_atom, single.edge_index)
        assert torch.equal(graph.shift[edges], single.shift)
        assert torch.equal(graph.row_ptr[first_atom : own.stop + 1] - first_edge, single.row_ptr)
        assert torch.equal(vectors[edges], edge_vectors(single, positions_of(atoms)))
        first_atom, first_edge = own.stop, edges.stop
    assert first_atom == len(graph.numbers) and first_edge == graph.edge_index.shape[1] == graph.row_ptr[-1]
    assert_equal(collate([collate(singles[:2]), collate(singles[2:3]), collate(singles[3:])]), graph)
    assert_equal(collate(iter(singles[:1])), singles[0])


def test_a_neighbor_list_with_skin():
    """Its builds are shared by many graphs, each the same as without it."""
    atoms = bulk("Si", cubic=True)
    neighbors = NeighborList(CUTOFF, skin=1.0)
    for seed in range(4):
        atoms.rattle(0.02, seed=seed)
        assert_equal(from_atoms(atoms, CUTOFF, neighbors=neighbors), from_atoms(atoms, CUTOFF))
    assert neighbors.n_builds == 1
    with pytest.raises(ValueError, match="cutoff is 5.0 A, but the given neighbour list has 4.0 A"):
        from_atoms(atoms, 5.0, neighbors=neighbors)


def test_torch_cluster_gives_the_same_graph():
    pytest.importorskip("torch_cluster")
    for atoms in structures():
        assert_equal(from_atoms(atoms, CUTOFF, neighbors="torch_cluster"), from_atoms(atoms, CUTOFF))


@pytest.mark.gpu
def test_a_graph_built_on_the_gpu():
    """Equals the graph built on the CPU and then moved."""
    on_gpu = [from_atoms(atoms, CUTOFF, device="cuda") for atoms in structures()]
    on_cpu = [from_atoms(atoms, CUTOFF) for atoms in structures()]
    for graph, expected in zip([*on_gpu, collate(on_gpu)], [*on_cpu, collate(on_cpu)], strict=True):
        assert all(x.device.type == "cuda" for x in graph[:-1])
        assert_equal(graph, expected.to("cuda"))
        assert_equal(graph.to("cpu"), expected)
    atoms = structures()[1]
    vectors = edge_vectors(on_gpu[1], positions_of(atoms).to("cuda"))
    torch.testing.assert_close(vectors.cpu(), edge_vectors(on_cpu[1], positions_of(atoms)), rtol=0, atol=1e-14)


# Refusals


def spoiled(positions=None, cell=None, number=None):
    atoms = bulk("Si", cubic=True)
    if positions is not None:
        atoms.positions[3] = positions
    if cell is not None:
        atoms.cell[:] = cell
    if number is not None:
        atoms.numbers[2] = number
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (spoiled(positions=[0, np.nan, 1]), r"position of atom 3 is not finite: \[0.0, nan, 1.0\]"),
        (spoiled(positions=[0, np.inf, 1]), "position of atom 3 is not finite"),
        (spoiled(cell=np.diag([5, 5, np.nan])), "the cell is not finite"),
        (spoiled(cell=np.diag([5, 5, 0])), "cell vector 2 is zero"),
        (spoiled(cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]]), "span no volume"),
    ],
    ids=["nan", "inf", "nan cell", "zero vector", "no volume"],
)
def test_atoms_that_cannot_be_evaluated(atoms, message):
    for check in (check_atoms, lambda atoms: from_atoms(atoms, CUTOFF)):
        with pytest.raises(ValueError, match=message):
            check(atoms)


def test_unknown_elements():
    check_atoms(spoiled(number=6), species=(6, 14))
    check_atoms(spoiled(number=118))
    with pytest.raises(ValueError, match=r"atom 2 has atomic number 6 \(C\); supported: Si, Ge"):
        check_atoms(spoiled(number=6), species=(14, 32))
    for number, symbol in ((0, "X"), (119, "no element"), (-1, "no element")):
        with pytest.raises(ValueError, match=rf"atom 2 has atomic number {number} \({symbol}\)"):
            check_atoms(spoiled(number=number))


def test_sound_atoms_pass():
    """A cell that is flat or zero where nothing is periodic is nobody's business, nor are no atoms at all."""
    for atoms in structures():
        check_atoms(atoms)
    atoms = spoiled(cell=np.diag([5, 5, 0]))
    atoms.pbc = (True, True, False)
    check_atoms(atoms)


@pytest.mark.parametrize("thing", [None, "Si.xyz", np.zeros((2, 3)), [Atoms("H")]])
def test_not_atoms(thing):
    for check in (check_atoms, lambda thing: from_atoms(thing, CUTOFF)):
        with pytest.raises(TypeError, match=f"expected ase.Atoms, got {type(thing).__name__}"):
            check(thing)


def test_coincident_atoms():
    def check(*samples):
        graph = collate([from_atoms(atoms, CUTOFF) for atoms in samples])
        check_coincident(graph, edge_vectors(graph, torch.cat([positions_of(atoms) for atoms in samples])))

    def pair(distance):
        return Atoms("OCO", [[9, 9, 9], [1, 2, 3], [1 + distance, 2, 3]])

    check(*structures(), pair(1.01e-4))
    with pytest.raises(ValueError, match="atoms 1 and 2 are 0 A apart"):
        check(pair(0.0))
    with pytest.raises(ValueError, match="atoms 1 and 2 of structure 1 are 9.9e-05 A apart, less than 0.0001 A"):
        check(molecule("H2O"), pair(9.9e-5))
    across = Atoms("He2", [[0, 0, 0], [5, 5, 5]], cell=np.eye(3) * 5, pbc=True)
    with pytest.raises(ValueError, match="atoms 0 and 1 are 0 A apart"):
        check(across)


def test_collate_nothing():
    with pytest.raises(ValueError, match="at least one graph"):
        collate([])


@pytest.mark.parametrize("positions", [torch.zeros((2, 3)), torch.zeros((3, 3), dtype=torch.float64)])
def test_positions_of_another_shape_or_precision(positions):
    graph = from_atoms(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]), CUTOFF)
    with pytest.raises(ValueError, match=r"must be torch.float64 of shape \(2, 3\), got torch.float"):
        edge_vectors(graph, positions)


@pytest.mark.parametrize("skin", [0.0, 0.7])
def test_the_search_gives_the_vectors_to_the_bit(skin):
    """With a skin the list was built at other positions; the numbers must be those of `edge_vectors` all the same."""
    rng = np.random.default_rng(0)
    atoms = bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1))
    atoms.set_cell(atoms.cell.array + rng.normal(scale=0.1, size=(3, 3)), scale_atoms=True)
    kept = NeighborList(4.0, skin=skin)
    for _ in range(3):
        atoms.positions += rng.normal(scale=0.03, size=(len(atoms), 3))
        graph, vectors = graph_and_vectors(atoms, 4.0, neighbors=kept)
        assert len(vectors) and torch.equal(vectors, edge_vectors(graph, torch.from_numpy(atoms.positions)))
    assert kept.n_builds == (1 if skin else 3)
