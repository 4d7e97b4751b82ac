"""Pieces of a structure with their halo against the whole periodic structure, and how far atoms see."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from toy import Embedded

from ase_equinn import MACE, NequIP, Potential, SchNet
from ase_equinn.derivatives import derivatives
from ase_equinn.engines.halo import Pieces, ranges, reach
from ase_equinn.evaluator import InTorch
from ase_equinn.graph import from_atoms
from ase_equinn.models.tfn import TFN
from ase_equinn.potential import ARCHITECTURES
from ase_equinn.programs import Programs
from ase_equinn.terms.zbl import ZBL

LIMITS = {"low": [-2, -2], "high": [2, 2], "alone": [0, 0.1], "rho_min": [4, 4], "rho_max": [5, 5], "near_max": [3, 3], "width": 0.5}
MODELS = {
    "schnet": lambda: SchNet((8, 14), 3.0, 8.0, n_channels=8, n_layers=3),
    "tfn": lambda: TFN((8, 14), 3.0, 8.0, irreps_hidden="4x0e+4x1o", lmax=1, n_layers=2, radial_width=8),
    "nequip": lambda: NequIP((8, 14), 3.0, 8.0, n_layers=2, irreps_hidden="4x0e+4x1o", radial_mlp=(8,)),
    "mace": lambda: MACE((8, 14), 3.0, 8.0, n_layers=2, irreps_hidden="4x0e+4x1o", lmax=2, correlation=2),
    "limited": lambda: MACE((8, 14), 3.0, 8.0, irreps_hidden="4x0e+4x1o", lmax=2, correlation=2, limits=LIMITS),
    "zbl": lambda: ZBL((8, 14)),
}


def make(*names: str) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Potential([MODELS[name]().double() for name in names]).eval().requires_grad_(False)


def crystal(repeat=1, seed=0):
    atoms = bulk("Si", cubic=True).repeat(repeat)
    atoms.set_cell(atoms.cell + [[0, 0, 0], [0.8, 0, 0], [0.3, -0.5, 0]], scale_atoms=True)
    rng = np.random.default_rng(seed)
    atoms.positions += rng.normal(0, 0.1, (len(atoms), 3))
    atoms.numbers = rng.choice([8, 14], len(atoms))
    return atoms


def unfolded(atoms, distance: float):
    """The atoms, and all images within the distance of the cell's atoms, after them; and which atom each is."""
    heights = 1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    n = np.ceil(distance / heights).astype(int) + 1
    grid = [s for s in np.ndindex(*(2 * n + 1)) if s != tuple(n)]
    places = [atoms.positions] + [atoms.positions + (np.array(s) - n) @ atoms.cell.array for s in grid]
    places, owner = np.concatenate(places), np.tile(np.arange(len(atoms)), len(places))
    low, high = atoms.positions.min(0) - distance, atoms.positions.max(0) + distance
    keep = ((places >= low) & (places <= high)).all(1)
    keep[: len(atoms)] = True
    return torch.from_numpy(places[keep]), torch.from_numpy(owner[keep])


@pytest.mark.parametrize(
    "names", [("nequip",), ("mace",), ("limited",), ("schnet",), ("nequip", "zbl"), ("tfn", "zbl")], ids="+".join
)
@pytest.mark.parametrize("size", [100, 1])
@pytest.mark.parametrize("evaluator", [InTorch, Programs])
def test_pieces_add_up_to_the_periodic_structure(names, size, evaluator):
    potential, atoms = make(*names), crystal()
    positions, owner = unfolded(atoms, reach(potential))
    numbers = torch.from_numpy(atoms.numbers)
    graphs = tuple(from_atoms(atoms, cutoff) for cutoff in potential.cutoffs)
    expected = derivatives(potential, graphs, torch.from_numpy(atoms.positions))
    found = Pieces(evaluator(potential), size=size).evaluate(positions, numbers[owner], len(atoms), owner)
    forces = torch.zeros_like(expected.forces).index_add(0, owner, found.forces)
    virial = torch.zeros_like(expected.node_virial).index_add(0, owner, found.node_virial)
    assert expected.forces.abs().max() > 0.01
    # float64 sums of some hundred terms in another order
    torch.testing.assert_close(found.node_energy, expected.node_energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(forces, expected.forces, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(virial, expected.node_virial, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["schnet", "nequip", "mace", "limited", "zbl"])
def test_programs_leave_out_what_the_core_does_not_depend_on(name):
    """Whatever earlier evaluations left in memory: with NaN all over it the results are the same numbers."""
    potential, atoms = make(name), crystal(2)
    positions, owner = unfolded(atoms, reach(potential))
    numbers, programs = torch.from_numpy(atoms.numbers)[owner], Programs(potential)
    pieces = Pieces(programs, size=9)
    first = pieces.evaluate(positions, numbers, len(atoms), owner)
    ((program, _),) = programs._programs[8, 14]
    memory = program._memory
    for tensor in (*memory.shared.values(), *memory.arrays.values(), memory.arena, memory.scratch):
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    again = pieces.evaluate(positions, numbers, len(atoms), owner)
    assert first.forces.abs().max() > 0.01
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_pieces_on_cuda_equal_those_on_the_cpu():
    potential, atoms = make("nequip", "zbl"), crystal()
    positions, owner = unfolded(atoms, reach(potential))
    numbers = torch.from_numpy(atoms.numbers)[owner]
    expected = Pieces(InTorch(potential), size=5).evaluate(positions, numbers, len(atoms), owner)
    found = Pieces(InTorch(potential.cuda()), size=5).evaluate(positions, numbers, len(atoms), owner)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_shorter_halo_is_wrong():
    """What the oracle above is worth: with neighbours only the energies differ visibly."""
    potential, atoms = make("nequip"), crystal()
    wanted = torch.from_numpy(atoms.numbers)
    totals = []
    for distance in (reach(potential), 2.0):
        positions, owner = unfolded(atoms, distance)
        totals.append(
            Pieces(InTorch(potential)).evaluate(positions, wanted[owner], len(atoms), owner).node_energy.sum()
        )
    assert abs(totals[0] - totals[1]) > 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_atoms_see_exactly_n_layers_far(name):
    """On a chain of atoms that see their next neighbours only, the energy of the first depends on the n_layers-th."""
    potential = make(name)
    (seen,) = ranges(potential)
    assert seen.n_layers == {"schnet": 3, "tfn": 2, "nequip": 2, "mace": 2, "limited": 2, "zbl": 1}[name]
    chain = torch.zeros(6, 3, dtype=torch.float64)
    chain[:, 0] = 0.6 * seen.cutoff * torch.arange(6)
    numbers = torch.tensor([14, 8, 14, 8, 14, 8])
    forces = Pieces(InTorch(potential), size=10).evaluate(chain, numbers, 1, torch.arange(6)).forces
    felt = forces.norm(dim=1) > 0
    assert felt.tolist() == [step <= seen.n_layers for step in range(6)]


def test_every_architecture_is_tested_here():
    assert set(MODELS) - {"limited"} == set(ARCHITECTURES)


def test_pieces_are_kept_while_atoms_move_by_less_than_half_the_skin():
    potential, atoms = make("nequip", "zbl"), crystal()
    rng = np.random.default_rng(1)
    numbers = torch.from_numpy(atoms.numbers)
    positions, owner = unfolded(atoms, reach(potential) + 0.6)
    pieces = Pieces(InTorch(potential), skin=0.6, size=5)
    drift = torch.from_numpy(rng.normal(0, 1, (len(atoms), 3)))
    drift *= 0.29 / drift.norm(dim=1, keepdim=True)
    for scale, n_chosen in ((0.0, 1), (0.5, 1), (1.0, 1), (1.1, 2)):
        moved = positions + scale * drift[owner]
        found = pieces.evaluate(moved, numbers[owner], len(atoms), owner)
        again = Pieces(InTorch(potential)).evaluate(moved, numbers[owner], len(atoms), owner)
        torch.testing.assert_close(found.forces, again.forces, rtol=1e-11, atol=1e-11)
        assert pieces.n_chosen == n_chosen


def test_atoms_are_named_in_errors():
    potential, atoms = make("nequip"), crystal()
    positions, numbers = torch.from_numpy(atoms.positions.copy()), torch.from_numpy(atoms.numbers)
    names = torch.arange(100, 100 + len(atoms))
    positions[5] = positions[2]
    with pytest.raises(ValueError, match=r"atoms 10[25] and 10[25] are 0 A apart"):
        Pieces(InTorch(potential)).evaluate(positions, numbers, 8, names)
    positions[5, 1] = torch.nan
    with pytest.raises(ValueError, match=r"the position of atom 105 is not finite: .*nan"):
        Pieces(InTorch(potential)).evaluate(positions, numbers, 8, names)


def test_no_core_is_an_ordinary_input():
    potential = make("nequip")
    nothing = torch.zeros(0, 3, dtype=torch.float64)
    for positions in (nothing, torch.ones(2, 3, dtype=torch.float64)):
        numbers = torch.full((len(positions),), 14)
        found = Pieces(InTorch(potential)).evaluate(positions, numbers, 0, numbers)
        assert found.node_energy.shape == (0,) and not found.forces.any()


def test_a_model_must_say_how_far_it_sees():
    with pytest.raises(ValueError, match="Embedded has no attribute n_layers"):
        ranges(Potential([Embedded((8, 14), 3.0)]))
