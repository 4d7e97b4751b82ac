"""EquiCalculator under what people run with it: optimizers, cell filters, integrators, NEB, pymatgen and phonopy.

The substance is an fcc crystal of Morse atoms whose equilibrium is known: lattice constant `A0`, all phonons real.
"""

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS
from toy import Pair

from ase_equinn.calculator import EquiCalculator
from ase_equinn.potential import Potential

A0 = 3.013527  # A, where the stress is zero (test_stress_vanishes_at_equilibrium)


def calculator(dtype="float64", skin=0.5) -> EquiCalculator:
    model = Pair((14,), 4.0, r0=2.4)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(-0.5)
    return EquiCalculator(Potential(model), device="cpu", dtype=dtype, skin=skin)


def crystal(size=2, **kwargs) -> Atoms:
    atoms = bulk("Si", "fcc", a=A0, cubic=True) * size
    atoms.calc = calculator(**kwargs)
    return atoms


def hot(temperature=300.0, **kwargs) -> Atoms:
    atoms = crystal(**kwargs)
    thermalize_momenta(atoms, temperature, rng=np.random.default_rng(0))
    return atoms


def test_stress_vanishes_at_equilibrium():
    assert np.abs(crystal().get_stress()).max() < 1e-5


@pytest.mark.parametrize("optimizer", [BFGS, FIRE, LBFGS])
def test_relaxation_ends_in_the_perfect_crystal(optimizer):
    atoms = crystal()
    perfect = atoms.get_potential_energy()
    atoms.rattle(0.08, seed=1)
    start = atoms.get_potential_energy()
    assert optimizer(atoms, logfile=None).run(fmax=1e-3, steps=200)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 1e-3
    assert start - perfect > 0.5
    assert atoms.get_potential_energy() == pytest.approx(perfect, abs=1e-5)


def test_cell_filter_finds_the_lattice_constant():
    atoms = crystal(size=1)
    atoms.set_cell(atoms.cell.array @ [[1.03, 0.02, 0], [0, 0.98, 0.01], [-0.01, 0, 1.02]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    start = atoms.get_potential_energy()
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=200)
    assert atoms.get_potential_energy() < start
    np.testing.assert_allclose(atoms.cell.lengths(), A0, atol=2e-4)
    np.testing.assert_allclose(atoms.cell.angles(), 90, atol=0.01)
    assert np.abs(atoms.get_stress()).max() < 1e-5


def spread(integrator, energy, steps) -> float:
    """Standard deviation of a conserved energy along a run, eV."""
    values = []
    integrator.attach(lambda: values.append(energy()))
    integrator.run(steps)
    assert len(values) == steps + 1
    return np.std(values)


def test_verlet_conserves_energy_to_second_order():
    """The error of the energy falls by four when the step is halved (4.1 here), in float32 and with a Verlet list."""
    found = []
    for step, steps in [(4.0, 60), (2.0, 120)]:
        atoms = hot(dtype="float32")
        found.append(spread(VelocityVerlet(atoms, step * units.fs), atoms.get_total_energy, steps))
        assert atoms.calc.timings["count"] <= steps + 2  # one evaluation a step
        assert atoms.calc._lists[4.0].n_builds == 1
    assert found[1] < 1e-3  # of 1.2 eV that oscillate between kinetic and potential energy
    assert 3 < found[0] / found[1] < 5


def test_bussi_conserves_energy_minus_heat():
    atoms = hot()
    integrator = Bussi(atoms, 2 * units.fs, 300, 50 * units.fs, rng=np.random.default_rng(1))
    heat = spread(integrator, lambda: atoms.get_total_energy() - integrator.transferred_energy, 100)
    assert heat < 1e-3 and abs(integrator.transferred_energy) > 0.05


@pytest.mark.parametrize("ensemble", ["NVT", "NPT"])
def test_nose_hoover_conserves_its_energy(ensemble):
    atoms = hot()
    arguments = {"timestep": 2 * units.fs, "temperature_K": 300, "tdamp": 100 * units.fs}
    if ensemble == "NVT":
        integrator = NoseHooverChainNVT(atoms, **arguments)
    else:
        integrator = IsotropicMTKNPT(atoms, pressure_au=0.0, pdamp=500 * units.fs, **arguments)
    volume = atoms.get_volume()
    assert spread(integrator, integrator.get_conserved_energy, 100) < 1e-3
    assert np.isclose(atoms.get_volume(), volume, rtol=1e-3) == (ensemble == "NVT")


def test_langevin_heats_to_its_temperature():
    """From rest; the mean over 300 steps of 96 degrees of freedom scatters by some 5 %."""
    atoms = crystal()
    integrator = LangevinBAOAB(
        atoms, 4 * units.fs, temperature_K=300, T_tau=40 * units.fs, rng=np.random.default_rng(2)
    )
    temperatures = []
    integrator.attach(lambda: temperatures.append(atoms.get_temperature()))
    integrator.run(400)
    assert temperatures[0] < 20 and 250 < np.mean(temperatures[100:]) < 350


@pytest.mark.parametrize("shared", [True, False])
def test_band_over_a_vacancy_hop(shared):
    """An atom moves into the vacancy beside it: by symmetry both ends are equal and the middle is the barrier."""
    first, last = crystal(), crystal()
    del first[0], last[1]  # what is left of the pair moves from site 1 to site 0
    calc = calculator()
    for end in (first, last):
        end.calc = calc
        BFGS(end, logfile=None).run(fmax=0.01, steps=100)
    images = [first, *(first.copy() for _ in range(3)), last]
    for image in images:
        image.calc = calc if shared else calculator()
    band = NEB(images, climb=True, allow_shared_calculator=shared, method="improvedtangent")
    band.interpolate(mic=True)
    assert FIRE(band, logfile=None).run(fmax=0.05, steps=150)
    energies = [image.get_potential_energy() for image in images]
    assert energies[0] == pytest.approx(energies[4], abs=1e-3)
    assert energies[1] == pytest.approx(energies[3], abs=0.01)
    assert energies[2] - energies[0] > 0.1 and max(energies) == energies[2]
    assert np.linalg.norm(images[2].get_forces(), axis=1).max() < 0.05  # a saddle point


def test_pymatgen_relaxes_and_calculates():
    structures = pytest.importorskip("pymatgen.core")
    a, calc = 1.04 * A0, calculator()
    structure = structures.Structure(
        structures.Lattice.cubic(a), ["Si"] * 4, bulk("Si", "fcc", a=1, cubic=True).positions
    )
    start = structure.calculate(calculator=calc).results["energy"]
    assert start == pytest.approx(calc.get_potential_energy(structure.to_ase_atoms()), rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        relaxed = structure.relax(calculator=calc, fmax=1e-3, optimizer="BFGS")
    np.testing.assert_allclose(relaxed.lattice.abc, A0, atol=2e-3)
    assert relaxed.calc.get_potential_energy() < start


def test_phonons_at_commensurate_points_are_those_of_the_supercell():
    """phonopy, from displacements, against the eigenvalues of the analytic Hessian: all 8 x 3 frequencies (THz)."""
    phonopy = pytest.importorskip("phonopy")
    from phonopy.structure.atoms import PhonopyAtoms

    primitive = bulk("Si", "fcc", a=A0)
    unit_cell = PhonopyAtoms(symbols=["Si"], cell=primitive.cell.array, scaled_positions=[[0, 0, 0]])
    phonons = phonopy.Phonopy(unit_cell, supercell_matrix=2 * np.eye(3, dtype=int), primitive_matrix=np.eye(3))
    phonons.generate_displacements(distance=1e-3)
    calc, forces = calculator(), []
    for cell in phonons.supercells_with_displacements:
        atoms = Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)
        forces.append(calc.get_forces(atoms))
    phonons.forces = forces
    phonons.produce_force_constants()
    np.testing.assert_allclose(phonons.force_constants.sum(1), 0, atol=1e-6)  # acoustic sum rule, eV/A^2
    phonons.run_qpoints(np.array(list(np.ndindex(2, 2, 2))) / 2)
    found = np.sort(phonons.qpoints.frequencies, axis=None)
    atoms = primitive * 2
    eigenvalues = np.linalg.eigvalsh(calc.get_hessian(atoms)) / atoms.get_masses()[0]
    expected = np.sqrt(eigenvalues[3:]) / (2 * np.pi) / (1000 * units.fs) ** -1
    assert found[3] > 1 and np.abs(found[:3]).max() < 0.01
    np.testing.assert_allclose(found[3:], expected, rtol=1e-3)
