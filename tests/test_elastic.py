"""Elastic constants against published values, energy differences, symmetry and matscipy."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.stress import voigt_6_to_full_3x3_stress
from pair_calculator import PairCalculator
from scipy.linalg import sqrtm

from ase_equinn.elastic import ElasticConstants, elastic_constants, equation_of_state
from ase_equinn.relax import RelaxSettings, relax

# Tersoff's Si(C), Phys. Rev. B 38, 9902 (1988), table I.
SILICON = TersoffParameters(
    m=3.0, gamma=1.0, lambda3=0.0, c=1.0039e5, d=16.217, h=-0.59825, n=0.78734, beta=1.1e-6, lambda2=1.73222,
    B=471.18, R=2.85, D=0.15, lambda1=2.4799, A=1830.8,
)  # fmt: skip


def tersoff():
    return Tersoff({("Si", "Si", "Si"): SILICON})


def piola_energy(atoms, calculator, eta, fmax=None):
    """Energy (eV) under the Lagrangian strain eta (6, engineering shear), by a matrix square root of scipy's."""
    strained = atoms.copy()
    matrix = voigt_6_to_full_3x3_stress(np.asarray(eta) * [1, 1, 1, 0.5, 0.5, 0.5])
    strained.set_cell(strained.cell @ sqrtm(np.eye(3) + 2 * matrix).real, scale_atoms=True)
    if fmax:
        strained = relax(strained, calculator, RelaxSettings(fmax=fmax, optimizer="bfgs")).atoms
    strained.calc = calculator
    return strained.get_potential_energy()


def second_difference(atoms, calculator, i, j, h, fmax=None):
    """d2E / d(eta_i) d(eta_j) / V in GPa from energies alone."""
    total = 0.0
    for a in (-1, 1):
        for b in (-1, 1):
            eta = np.zeros(6)
            eta[i] += a * h
            eta[j] += b * h
            total += a * b * piola_energy(atoms, calculator, eta, fmax)
    return total / (4 * h * h) / atoms.get_volume() / units.GPa


@pytest.fixture(scope="module")
def silicon():
    return bulk("Si", cubic=True, a=5.432)


def test_silicon_has_the_constants_published_with_the_potential(silicon):
    """C11 1.425, C12 0.754, C44 0.690 and C44(0) (clamped) 1.188 Mbar; half of a last digit is 0.05 GPa."""
    clamped = elastic_constants(silicon, tersoff())
    relaxed = elastic_constants(silicon, tersoff(), relaxed=True)
    assert np.allclose(clamped.cubic[:3], [142.5, 75.4, 118.8], atol=0.06)
    assert np.allclose(relaxed.cubic[:3], [142.5, 75.4, 69.0], atol=0.06)
    for result in (clamped, relaxed):
        assert result.cubic.spread < 1e-3
        assert result.asymmetry < 1e-3
        assert abs(result.residual_stress).max() < 0.05
        assert result.bulk_modulus == pytest.approx((142.5 + 2 * 75.4) / 3, abs=0.1)


def test_equation_of_state_agrees_with_elastic_constants_and_from_stress_as_from_energy(silicon):
    """Two fits of independent data: energies agree with stresses to the order of the polynomial that is left out."""
    silicon = silicon.copy()
    silicon.set_cell(silicon.cell * 1.01, scale_atoms=True)
    eos = equation_of_state(silicon, tersoff())
    assert eos.scale * 5.432 * 1.01 == pytest.approx(5.432, abs=0.0005)
    assert eos.scale_stress == pytest.approx(eos.scale, rel=1e-6)
    assert eos.bulk_modulus == pytest.approx((142.5 + 2 * 75.4) / 3, abs=0.1)
    assert eos.bulk_modulus_stress == pytest.approx(eos.bulk_modulus, rel=1e-3)
    minimum = silicon.copy()
    minimum.set_cell(silicon.cell * eos.scale, scale_atoms=True)
    minimum.calc = tersoff()
    assert eos.energy == pytest.approx(minimum.get_potential_energy(), abs=1e-5)
    assert eos.volume == pytest.approx(minimum.get_volume())


def test_stress_that_is_not_the_energy_s_gives_another_lattice_constant():
    """A constant of 1 GPa on the stress, as unconverged labels carry, moves its zero by 1/(3B), not the energies'."""

    class Shifted(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["stress"] = self.results["stress"] + np.array([1, 1, 1, 0, 0, 0]) * units.GPa

    true, shifted = (equation_of_state(bulk("Cu", a=3.59), calc) for calc in (EMT(), Shifted()))
    assert shifted.scale == true.scale
    assert shifted.scale_stress - true.scale_stress == pytest.approx(-1 / (3 * true.bulk_modulus), rel=0.03)


@pytest.mark.parametrize("a", [3.3, 4.0])
def test_far_start_finds_the_same_minimum(a):
    eos = equation_of_state(bulk("Cu", a=a), EMT())
    assert eos.scale * a == pytest.approx(3.58983, abs=2e-4)  # from a start at 3.61


def test_no_minimum_and_bad_input_are_errors():
    class Repulsive(PairCalculator):
        def pair(self, r):
            return (1 - r / self.cutoff) ** 4, -4 / self.cutoff * (1 - r / self.cutoff) ** 3

    with pytest.raises(ValueError, match="no energy minimum"):
        equation_of_state(bulk("Cu", a=3.6), Repulsive(cutoff=12.0), points=5)
    for function in (equation_of_state, elastic_constants):
        with pytest.raises(ValueError, match="OH2, pbc"):
            function(molecule("H2O"), EMT())
    with pytest.raises(ValueError, match=r"received 4"):
        equation_of_state(bulk("Cu"), EMT(), points=4)
    with pytest.raises(ValueError, match=r"received 0.5"):
        elastic_constants(bulk("Cu"), EMT(), strain=0.5)


@pytest.mark.parametrize("scale", [1.0, 0.97])
def test_constants_are_second_derivatives_of_the_energy_also_under_residual_stress(scale):
    """At 0.97 the cell carries some 15 GPa, and a slope of the Cauchy stress would be off by as much."""
    atoms = bulk("Cu", "fcc", a=3.59 * scale, cubic=True)
    result = elastic_constants(atoms, EMT())
    assert (abs(result.residual_stress).max() > 10) == (scale < 1)
    for i, j in [(0, 0), (0, 1), (3, 3), (4, 4), (1, 3)]:
        # second differences with steps h and 2h, extrapolated to order h^4
        coarse, fine = (second_difference(atoms, EMT(), i, j, h) for h in (4e-3, 2e-3))
        assert result.tensor[i, j] == pytest.approx((4 * fine - coarse) / 3, abs=0.02)


def test_hexagonal_crystal_with_an_atom_that_moves():
    """A crystal that is not cubic: the tensor has the symmetry of the point group, the relaxed one matches energies."""
    atoms = bulk("Cu", "hcp", a=2.56, c=4.1)
    atoms = relax(atoms, PairCalculator(), RelaxSettings(fmax=1e-6, smax=1e-5, cell="full")).atoms
    clamped = elastic_constants(atoms, PairCalculator()).tensor
    relaxed = elastic_constants(atoms, PairCalculator(), relaxed=True, fmax=1e-6).tensor
    for c in (clamped, relaxed):
        assert c[5, 5] == pytest.approx((c[0, 0] - c[0, 1]) / 2, abs=1e-3)
        assert np.allclose([c[0, 0] - c[1, 1], c[3, 3] - c[4, 4], c[0, 2] - c[1, 2], c[0, 3], c[3, 5]], 0, atol=1e-3)
    assert clamped[5, 5] - relaxed[5, 5] > 1
    assert relaxed[5, 5] == pytest.approx(second_difference(atoms, PairCalculator(), 5, 5, 2e-3, 1e-6), abs=0.05)


def test_matscipy_agrees():
    elasticity = pytest.importorskip("matscipy.elasticity")
    atoms = bulk("Cu", "fcc", a=3.5898263, cubic=True)
    atoms.calc = EMT()
    tensor, _ = elasticity.fit_elastic_constants(atoms, symmetry="triclinic", N_steps=5, delta=1e-3, verbose=False)
    assert np.allclose(elastic_constants(atoms, EMT()).tensor, tensor / units.GPa, atol=0.1)


def test_cubic_spread_tells_a_crystal_that_is_not_cubic_or_not_along_the_axes():
    tensor = elastic_constants(bulk("Cu", "fcc", a=3.59), EMT())
    assert tensor.cubic.spread < 1e-3
    turned = bulk("Cu", "fcc", a=3.59)
    turned.rotate(30, "z", rotate_cell=True)
    assert elastic_constants(turned, EMT()).cubic.spread > 20
    assert ElasticConstants(np.eye(6), np.zeros(6), 0.0).cubic == (1.0, 0.0, 1.0, 0.0)


def test_caller_keeps_its_atoms():
    atoms = bulk("Cu", a=3.6)
    before = atoms.copy()
    equation_of_state(atoms, EMT(), relaxed=True)
    elastic_constants(atoms, EMT(), relaxed=True)
    assert atoms == before
    assert atoms.calc is None
