"""The mean of potentials as one potential: its numbers are the means of theirs, through files and native programs too."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from ase_equinn import MACE, EquiCalculator, Potential, SchNet
from ase_equinn.potential_mean import mean_potential
from ase_equinn.terms.zbl import ZBL

NUMBERS = [1, 6, 8]


def one(seed: int, build=None, radius: float = 0.9, **more) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build() if build else SchNet(NUMBERS, 4.0, n_channels=8, n_layers=2, n_basis=4)
    arguments = {"shift": {1: 0.1 * seed, 6: -1.0, 8: 0.5}, "scale": [1.0 + 0.1 * seed, 1.0]} | more
    return Potential([network.double(), ZBL(NUMBERS, radii=[radius] * 3).double()], **arguments)


def mace() -> torch.nn.Module:
    return MACE(NUMBERS, 3.0, irreps_hidden="4x0e+4x1o", n_layers=2, lmax=2, correlation=2)


def results(potential, atoms) -> list[np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = EquiCalculator(potential, device="cpu", dtype="float64")
    found = [atoms.get_potential_energies(), atoms.get_forces()]
    return [*found, atoms.get_stress()] if atoms.pbc.all() else found


def diamond():
    atoms = bulk("C", cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), diamond()], ids=["molecule", "crystal"])
def test_its_numbers_are_the_means(atoms):
    """Different networks, cutoffs, scales, shifts, reference energies and cores."""
    potentials = [
        one(0, reference_energies={1: -13.6, 6: -1029.0, 8: -2041.0}),
        one(1, reference_energies={1: -13.0, 6: -1028.0, 8: -2040.0}),
        one(2, mace, radius=0.7, reference_energies={1: -13.1, 6: -1028.5, 8: -2040.5}),
    ]
    own = [results(potential, atoms) for potential in potentials]
    for found, parts in zip(results(mean_potential(potentials), atoms), zip(*own), strict=True):
        np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=0, atol=1e-11)


def test_equal_cores_stand_once_and_networks_apart():
    found = mean_potential([one(0), one(1), one(2, mace), one(0)])
    assert [type(model).__name__ for model in found.models] == ["SchNet", "ZBL", "SchNet", "MACE", "SchNet"]
    assert found.scale == pytest.approx((0.25, 1.0, 0.275, 0.3, 0.25))
    other = mean_potential([one(0), one(0, radius=0.8)])
    assert [type(model).__name__ for model in other.models] == ["SchNet", "ZBL", "SchNet", "ZBL"]
    assert other.scale == (0.5, 0.5, 0.5, 0.5)


def test_it_is_a_potential_file_like_any(tmp_path):
    found, atoms = mean_potential([one(seed, mace) for seed in range(3)]), molecule("CH3OH")
    found.save(tmp_path)
    for a, b in zip(results(tmp_path, atoms), results(found, atoms), strict=True):
        np.testing.assert_array_equal(a, b)
    of_first = one(0, mace).descriptors(*_inputs(one(0, mace), atoms))
    assert torch.equal(found.descriptors(*_inputs(found, atoms)), of_first)


def _inputs(potential, atoms):
    from ase_equinn.evaluate_batches import batch_graphs

    graphs, vectors, _ = batch_graphs([atoms], potential, ["one"])
    return tuple(graphs), tuple(vectors)


def test_what_cannot_be_averaged():
    with pytest.raises(ValueError, match="no potentials"):
        mean_potential([])
    other = Potential(SchNet([1, 6], 4.0, n_channels=8, n_layers=2, n_basis=4).double())
    with pytest.raises(ValueError, match=r"member 0 knows the elements \(1, 6, 8\), member 1 knows \(1, 6\)"):
        mean_potential([one(0), other])
    with pytest.raises(ValueError, match="disagree on dtype"):
        mean_potential([one(0), one(1).float()])
