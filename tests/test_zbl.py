"""ZBL passes the contract, gives the published numbers, and is the pair repulsion of mace-torch when it has its constants."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import ModelContract
from contract_structures import evaluate

from ase_equinn.potential import Potential
from ase_equinn.terms.zbl import COULOMB, ZBL


class TestZBL(ModelContract):
    def make_model(self, dtype):
        return ZBL((1, 6, 8), radii=(2.0, 2.0, 2.0), decays=(0.8, 0.4, 0.2, 0.1)).to(dtype)

    # There is nothing to learn, and there are no descriptors.
    test_every_parameter_learns = test_gradient_of_a_force_loss = test_hyperparameters_rebuild_the_model = None
    test_descriptors_are_invariant = None


def energy(model, symbols, r) -> float:
    return evaluate(Potential(model.double()), Atoms(symbols, [[0, 0, 0], [0, 0, r]])).energy[0]


@pytest.mark.parametrize("symbols", ["SiSi", "HO", "AuC"])
@pytest.mark.parametrize("r", [0.05, 0.2, 0.45])
def test_published_screening(symbols, r):
    """Radii of 1000 A switch the envelope off (1 - O((r/2000)^6))."""
    species = sorted({*Atoms(symbols).numbers.tolist()})
    z1, z2 = Atoms(symbols).numbers.tolist()
    a = 0.8854 * 0.529177 / (z1**0.23 + z2**0.23)
    x = r / a
    phi = 0.1818 * math.exp(-3.2 * x) + 0.5099 * math.exp(-0.9423 * x)
    phi += 0.2802 * math.exp(-0.4029 * x) + 0.02817 * math.exp(-0.2016 * x)
    # the book's rounded coefficients, and 0.8854 a_0 = 0.46854 A for 0.4685 A
    assert energy(ZBL(species, radii=[1000.0] * len(species)), symbols, r) == pytest.approx(
        COULOMB * z1 * z2 / r * phi, rel=5e-4
    )


def test_nuclei_at_short_distance():
    assert energy(ZBL((14,)), "Si2", 1e-3) == pytest.approx(COULOMB * 14**2 / 1e-3, rel=0.02)


@pytest.mark.parametrize("symbols, end", [("Si2", 2.22), ("HSi", 1.42), ("H2", 0.62)])
def test_each_pair_ends_at_the_sum_of_its_covalent_radii(symbols, end):
    model = ZBL((1, 14))
    assert model.cutoff == pytest.approx(2.22)
    assert energy(model, symbols, end + 1e-9) == 0.0
    assert 0 < energy(model, symbols, end - 1e-3) < 1e-6
    assert energy(model, symbols, end - 0.2) > 1e-3


def test_both_atoms_share_the_energy():
    result = evaluate(Potential(ZBL((1, 14)).double()), Atoms("HSi", [[0, 0, 0], [0.3, 0.5, 0.1]]))
    assert result.node_energy[0] == pytest.approx(result.node_energy[1], rel=1e-14)


def test_cutoff_inside_a_larger_graph():
    """Beside a model with the same cutoff of 5 A nothing changes: the envelope ends each pair."""
    small, large = ZBL((1, 14)).double(), ZBL((1, 14)).double()
    large.cutoff = 5.0
    rng = np.random.default_rng(0)
    atoms = Atoms("Si4H4", rng.uniform(0, 2.5, (8, 3)), cell=[3.1, 3.2, 3.3], pbc=True)
    a, b = evaluate(Potential(small), atoms), evaluate(Potential(large), atoms)
    np.testing.assert_allclose(a.energy, b.energy, rtol=1e-12)
    np.testing.assert_allclose(a.forces, b.forces, rtol=1e-10, atol=1e-10 * np.abs(a.forces).max())


def test_dtype_survives_a_file(tmp_path):
    path = Potential(ZBL((1, 14)).double()).save(tmp_path)
    loaded = Potential.load(path)
    assert loaded.dtype == torch.float64 and loaded.models[0].hyperparameters == ZBL((1, 14)).hyperparameters


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(radii=(1.0,)), r"one positive number for each of \(1, 14\), got \[1.0\]"),
        (dict(radii=(1.0, -2.0)), r"radii .* got \[1.0, -2.0\]"),
        (dict(decays=(1.0,)), "each amplitude needs a positive decay"),
        (dict(amplitudes=(1.0,), decays=(0.0,)), r"positive decay, got \[1.0\] and \[0.0\]"),
        (dict(length=0.0), "length must be positive"),
        (dict(envelope_power=0), "envelope_power must be an integer >= 1, got 0"),
        (dict(species=(1, 118)), "covalent radii are known for atomic numbers"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        ZBL(**{"species": (1, 14), **bad})
