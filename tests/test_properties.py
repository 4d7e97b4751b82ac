"""Properties of crystals against values that can be had otherwise: by hand, by ASE alone, by another fit."""

import json

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.io import read, write
from ase.optimize import BFGS
from pair_calculator import PairCalculator
from scipy.optimize import minimize
from typer.testing import CliRunner

from ase_equinn import EquiCalculator, cli_properties, plot_properties, properties_phonons
from ase_equinn import properties as module
from ase_equinn.cli import app
from ase_equinn.elastic import ElasticConstants, elastic_constants
from ase_equinn.plot_md import read_log
from ase_equinn.properties import as_dict, dynamics_rows, elastic_names, properties, rows
from ase_equinn.properties_crystal import crystal, lattice, neighbor_distance, repeats, vacancy
from ase_equinn.properties_md import _displacement, _first_peak, stability
from ase_equinn.properties_phonons import phonons
from ase_equinn.properties_surface import LOW_INDEX, surface


def bonds():
    """A pair potential that reaches the nearest neighbours of copper only: every energy is a number of bonds."""
    return PairCalculator(depth=0.4, a=2.0, r0=2.556, cutoff=3.3)


@pytest.fixture(scope="module")
def copper():
    return lattice(crystal("Cu"), EMT())


@pytest.fixture(scope="module")
def bonded():
    return lattice(crystal("Cu"), bonds())


# ---- the cell


@pytest.mark.parametrize(("symbol", "atoms"), [("Si", 8), ("Cu", 4), ("Mo", 2), ("Mg", 2), ("C", 8)])
def test_reference_state_is_the_default_cell(symbol, atoms):
    cell = crystal(symbol)
    assert len(cell) == atoms
    assert set(cell.get_chemical_symbols()) == {symbol}


@pytest.mark.parametrize("structure", ["diamond", "fcc", "bcc", "hcp"])
def test_other_structures_start_at_the_distance_of_two_covalent_radii(structure):
    """Copper's is 1.32 A (Cordero 2008)."""
    if structure != "fcc":
        assert neighbor_distance(crystal("Cu", structure)) == pytest.approx(2.64, abs=1e-6)
    coordination = {"diamond": 4, "fcc": 12, "bcc": 8, "hcp": 12}[structure]
    cell = crystal("Cu", structure) * (3, 3, 3)
    d = cell.get_distances(0, range(len(cell)), mic=True)
    assert (abs(d - neighbor_distance(cell)) < 1e-3).sum() == coordination


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("Xx",), "'Xx'"), (("X",), "'X'"), (("Ga",), "reference state of Ga is 'orthorhombic'"), (("Cu", "sc"), "'sc'")],
)
def test_unknown_crystals_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        crystal(*arguments)


@pytest.mark.parametrize("function", [lattice, vacancy, surface])
def test_needs_one_element_and_three_periods(function):
    for bad in (bulk("NaCl", "rocksalt", a=5.6), Atoms("Cu4", positions=np.eye(4, 3) * 3), Atoms(pbc=True)):
        with pytest.raises(ValueError, match="crystal of one element"):
            function(bad, EMT())


# ---- lattice and vacancy


def test_lattice_constant_is_found_from_energy_and_from_stress(copper):
    assert copper.lengths == pytest.approx([3.58983] * 3, abs=2e-4)  # as in test_elastic, by another start
    assert copper.lengths_stress == pytest.approx(copper.lengths, rel=1e-5)
    cell = copper.atoms.copy()
    cell.calc = EMT()
    assert copper.energy == pytest.approx(cell.get_potential_energy() / 4, abs=1e-6)
    assert copper.volume == pytest.approx(cell.get_volume() / 4)
    assert abs(cell.get_stress() / units.GPa).max() < 2e-3


def test_bond_length_of_a_pair_potential(bonded):
    """fcc with nearest neighbours only has the pair's own minimum: a = sqrt(2) r, E = -6 D a atom."""
    best = minimize(lambda r: bonds().pair(r)[0], 2.5, tol=1e-12)
    assert bonded.lengths[0] == pytest.approx(2**0.5 * float(best.x[0]), rel=1e-5)
    assert bonded.energy == pytest.approx(6 * best.fun, rel=1e-6)


def test_hcp_finds_both_lattice_constants():
    """The energies' minimum over a and c by scipy, which sees no stress."""

    def energy(lengths):
        atoms = bulk("Cu", "hcp", a=lengths[0], c=lengths[1])
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    found = lattice(crystal("Cu", "hcp"), EMT())
    a, c = minimize(energy, (2.55, 4.2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}).x
    assert found.lengths == pytest.approx([a, a, c], abs=2e-4)


def test_crystal_whose_atoms_are_off_their_sites_is_relaxed(copper):
    atoms = copper.atoms.copy() * (2, 1, 1)
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell * [1.02, 0.99, 1.0], scale_atoms=True)
    before = atoms.copy()
    found = lattice(atoms, EMT())
    assert found.lengths == pytest.approx([2 * copper.lengths[0], *copper.lengths[1:]], abs=3e-3)
    assert found.energy == pytest.approx(copper.energy, abs=1e-5)
    assert atoms == before and atoms.calc is None


def test_vacancy_costs_the_cohesive_energy_where_bonds_add(bonded):
    """Twelve bonds break, six come back with the atom in the bulk: 6 D, and nothing relaxes by more than fmax does."""
    found = vacancy(bonded.atoms, bonds(), repeat=2, fmax=0.002)
    assert found.unrelaxed == pytest.approx(-bonded.energy, rel=1e-6)
    assert found.energy == pytest.approx(-bonded.energy, abs=2e-4)
    assert found.converged and found.n_atoms == 32


def test_vacancy_relaxes_as_by_ase_alone(copper):
    perfect = copper.atoms * (3, 3, 3)
    perfect.calc = EMT()
    hole = perfect.copy()
    del hole[17]
    hole.calc = EMT()
    expected = [hole.get_potential_energy()]
    BFGS(hole, logfile=None).run(fmax=0.002)
    expected.append(hole.get_potential_energy())
    expected = np.array(expected) - perfect.get_potential_energy() * 107 / 108
    found = vacancy(copper.atoms, EMT(), fmax=0.005)
    assert found.n_atoms == 108  # 3 x 3 x 3 is the default
    assert (found.unrelaxed, found.energy) == pytest.approx(expected, abs=2e-4)
    assert found.energy < found.unrelaxed - 0.005
    assert not vacancy(copper.atoms, EMT(), repeat=2, steps=1).converged
    with pytest.raises(ValueError, match="supercell of one atom"):
        vacancy(bulk("Cu", a=3.59), EMT(), repeat=1)


def test_repeats_come_near_the_length():
    assert repeats(crystal("Si"), 15.0) == (3, 3, 3)
    assert repeats(bulk("Cu", cubic=True) * (1, 2, 9), 11.0) == (3, 2, 1)


# ---- surfaces


@pytest.mark.parametrize(
    ("miller", "broken", "area"), [(LOW_INDEX[0], 4, 0.5), (LOW_INDEX[1], 6, 0.5**0.5), (LOW_INDEX[2], 3, 3**0.5 / 4)]
)
def test_surface_energy_counts_broken_bonds(bonded, miller, broken, area):
    """fcc: 4, 6 (five of the first plane, one of the second), 3 bonds a cell of a^2/2, a^2/sqrt(2), sqrt(3)/4 a^2."""
    found = surface(bonded.atoms, bonds(), miller, thickness=8)
    bond = -bonded.energy / 6
    expected = broken * bond / 2 / (area * bonded.lengths[0] ** 2)
    assert found.unrelaxed * units.J / units.m**2 == pytest.approx(expected, rel=1e-5)
    assert found.energy == pytest.approx(found.unrelaxed, rel=1e-4)


def test_diamond_breaks_where_it_costs_one_bond_not_three():
    """(111) of diamond has two kinds of gaps between planes."""
    calculator = PairCalculator(depth=0.4, a=2.0, r0=2.35, cutoff=3.0)
    cell = lattice(crystal("Si"), calculator)
    found = surface(cell.atoms, calculator, (1, 1, 1), thickness=8)
    bond, area = -cell.energy / 2, 3**0.5 / 4 * cell.lengths[0] ** 2
    assert found.unrelaxed * units.J / units.m**2 == pytest.approx(bond / 2 / area, rel=1e-5)


def test_surface_relaxes_and_refuses_bad_input(copper):
    found = surface(copper.atoms, EMT(), (1, 1, 0))
    assert found.energy < found.unrelaxed - 1e-3 and found.converged
    thicker = surface(copper.atoms, EMT(), (1, 1, 0), thickness=20, vacuum=14)
    assert thicker.energy == pytest.approx(found.energy, rel=0.01)
    for bad in ((0, 0, 0), (1, 1), (0.5, 1, 0)):
        with pytest.raises(ValueError, match="three whole numbers"):
            surface(copper.atoms, EMT(), bad)
    with pytest.raises(ValueError, match="thickness.*received -1"):
        surface(copper.atoms, EMT(), thickness=-1)


# ---- phonons


def test_phonons_of_springs_are_those_of_the_textbook(bonded):
    """fcc with springs k between nearest neighbours: M w^2 = 8k, 4k, 4k at X and 8k, 2k, 2k at L.

    Anharmonic terms of a displacement of 2 mA are below 1e-4 of the frequencies.
    """
    pytest.importorskip("phonopy")
    r, h, v = bonded.lengths[0] / 2**0.5, 1e-4, bonds().pair
    k = (v(r + h)[1] - v(r - h)[1]) / (2 * h)
    unit = (k / bonded.atoms.get_masses()[0]) ** 0.5 * units.s / (2e12 * np.pi)
    found = phonons(bonded.atoms, bonds(), repeat=2, distance=0.002, points=40, mesh=4)
    assert np.sort(found.special["X"]) == pytest.approx(unit * np.sqrt([4, 4, 8]), rel=2e-4)
    assert np.sort(found.special["L"]) == pytest.approx(unit * np.sqrt([2, 2, 8]), rel=2e-4)
    assert found.highest == pytest.approx(unit * 8**0.5, rel=2e-4)
    assert not found.imaginary and found.lowest > 0.1, "the acoustic zero at Gamma does not count"
    assert found.n_atoms == 32 and found.frequencies.shape == (40, 3)
    assert [name for _, name in found.labels][:2] == ["G", "X"]


def test_unstable_crystal_has_imaginary_phonons_and_negative_shear():
    """bcc copper: C11 < C12, so the shear of (110) planes lowers the energy, by strain and by phonons."""
    pytest.importorskip("phonopy")
    cell = lattice(crystal("Cu", "bcc"), EMT()).atoms
    constants = elastic_names(elastic_constants(cell, EMT()))
    assert constants["C11"] < constants["C12"]
    found = phonons(cell, EMT(), repeat=3, points=60, mesh=6)
    assert found.imaginary and found.lowest < -0.5
    assert not phonons(cell, EMT(), repeat=3, points=60, mesh=6, tolerance=5.0).imaginary


def test_phonons_refuse_forces_and_molecules(copper):
    pytest.importorskip("phonopy")
    rattled = copper.atoms.copy()
    rattled.rattle(0.1, seed=0)
    with pytest.raises(ValueError, match="force of .* is left"):
        phonons(rattled, EMT())
    with pytest.raises(ValueError, match="need a crystal"):
        phonons(Atoms("Cu"), EMT())
    with pytest.raises(ValueError, match="distance.*received 0"):
        phonons(copper.atoms, EMT(), distance=0)


# ---- molecular dynamics


@pytest.fixture(scope="module")
def silicon():
    """A cell and a fast calculator."""
    atoms = crystal("Si")
    atoms.set_cell(atoms.cell * 5.469 / 5.43, scale_atoms=True)
    return atoms, EquiCalculator("silicon", device="cpu")


def test_cold_crystal_stays_a_crystal(silicon, tmp_path):
    calls = []
    found = stability(*silicon, 300, time=0.5, output=tmp_path, progress=lambda *call: calls.append(call))
    assert (found.state, found.stable, found.reason, found.n_atoms) == ("solid", True, "", 64)
    assert found.timestep == pytest.approx(1.5, abs=0.01)
    assert found.survived == pytest.approx(0.5, abs=0.02)
    log = read_log(tmp_path / "nvt/md.csv")
    late = slice(len(log["step"]) // 2, None)  # of a run of 0.5 ps
    temperature = log["temperature"][late]
    assert found.mean_temperature == temperature.mean() and found.max_deviation == abs(temperature - 300).max()
    assert found.deviation_sigmas == pytest.approx(found.max_deviation / (300 * (2 / 189) ** 0.5))
    assert found.pressure == log["pressure_GPa"][late].mean()
    frames = read(tmp_path / "nvt/md.xyz", ":")
    closest = min(neighbor_distance(frame) for frame in frames[len(frames) // 2 :])
    assert found.min_distance == pytest.approx(closest, abs=1e-6)
    assert found.peak[0] == pytest.approx(5.469 * 3**0.5 / 4, abs=0.06)
    assert abs(found.nve_drift) < 1 and found.displacement < 0.1
    done = [step for step, _ in calls]
    assert done == sorted(done) and calls[-1][0] == calls[-1][1]


def test_hot_crystal_melts_and_is_found_out(silicon):
    found = stability(*silicon, 4000, time=0.9)
    assert found.state == "liquid" and not found.stable and "melted" in found.reason


def test_liquid_is_melted_first(silicon, tmp_path):
    found = stability(*silicon, 2500, liquid=True, time=0.7, output=tmp_path)
    assert found.state == "liquid" and found.stable and found.reason == ""
    hot = read_log(tmp_path / "melt/md.csv")["temperature"]
    assert hot[len(hot) // 2 :].mean() == pytest.approx(1.75 * 2500, rel=0.15)
    assert found.mean_temperature == pytest.approx(2500, rel=0.2)
    assert found.peak[0] == pytest.approx(2.45, abs=0.2)  # of long runs 2.4 to 2.5 A


def test_crystal_that_does_not_melt_is_no_liquid(silicon):
    found = stability(*silicon, 200, liquid=True, time=0.2)
    assert found.state == "solid" and not found.stable and "no liquid" in found.reason


class Trap(EMT):
    """Fails like a potential with a hole: after some steps one force becomes huge, or not a number."""

    def __init__(self, value, after):
        super().__init__()
        self.value, self.after, self.count = value, after, 0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.count += 1
        if self.count > self.after:
            self.results["forces"][3, 0] = self.value


@pytest.mark.parametrize(("value", "message"), [(1e4, "explodes"), (np.nan, "force of atom 3")])
def test_accident_is_a_result_that_says_when(copper, value, message):
    found = stability(copper.atoms, Trap(value, 60), 300, time=1.0, n_atoms=32)
    assert (found.state, found.stable) == ("lost", False)
    assert message in found.reason and "restart" not in found.reason
    assert found.survived == pytest.approx(60 * found.timestep / 1000, abs=0.03)
    assert found.mean_temperature is None


class Free(Calculator):
    """Atoms that do not see each other."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def test_gas_has_flown_apart_and_into_itself(copper):
    found = stability(copper.atoms, Free(), 2000, time=1.0, n_atoms=32)
    assert found.state == "lost" and not found.stable
    assert "into one another" in found.reason
    assert found.pressure is None and found.displacement > 2


def test_displacement_ignores_drift_and_peak_is_the_first():
    frames = [Atoms("Cu2", positions=[[0, 0, 0], [2 + 0.1 * t, 5 * t, 0]]) for t in range(10)]
    for t, frame in enumerate(frames):
        frame.positions[:, 2] += 7 * t  # of the whole
    expected = np.mean([(0.05 * t) ** 2 + (2.5 * t) ** 2 for t in (8, 9)])
    assert _displacement(frames) == pytest.approx(expected)
    r = np.arange(0, 7, 0.035)
    g = 2 * np.exp(-((r - 2.4) ** 2) / 0.05) + 3 * np.exp(-((r - 4) ** 2) / 0.05)
    assert _first_peak(r, g) == pytest.approx((2.4, 2.0), abs=0.02)
    noisy = g + 1.5 * (abs(r - 1.8) < 0.02)  # one pair of atoms, once
    assert _first_peak(r, noisy) == pytest.approx((2.4, 2.0), abs=0.02)


@pytest.mark.parametrize(
    "bad", [{"temperature": 0}, {"time": -1.0}, {"timestep": 0}, {"n_atoms": np.nan}, {"n_atoms": 2}]
)
def test_md_refuses_bad_numbers(copper, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        stability(copper.atoms, EMT(), **{"temperature": 300, **bad})


# ---- the report and the command


@pytest.fixture(scope="module")
def report():
    """Everything for EMT copper, with small supercells."""
    calls = []
    keep = properties_phonons.SUPERCELL
    properties_phonons.SUPERCELL = 7.0
    try:
        found = properties(EMT(), "Cu", solid=300, time=0.2, progress=lambda *call: calls.append(call))
    finally:
        properties_phonons.SUPERCELL = keep
    return found, calls


def test_report_holds_what_the_functions_give(report, copper):
    found, calls = report
    assert found.failed == []
    assert found.lattice.lengths == copper.lengths
    assert found.clamped.cubic == elastic_constants(copper.atoms, EMT()).cubic
    assert found.relaxed.cubic[:3] == pytest.approx(found.clamped.cubic[:3], abs=0.1)  # each atom is a centre
    assert found.vacancy == vacancy(copper.atoms, EMT())
    assert [face.miller for face in found.surfaces] == list(LOW_INDEX)
    assert found.dynamics[0].state == "solid"
    quantities = {row.quantity: row.value for row in rows(found)}
    assert quantities["a, lowest energy"] == copper.lengths[0]
    assert {"C44, relaxed ions", "vacancy, relaxed, 108 atoms", "surface (111), not reconstructed"} <= set(quantities)
    assert len(dynamics_rows(found)[0]) == len(module.DYNAMICS)
    done = [step for _, step, _ in calls]
    assert done == sorted(done) and calls[-1][1] == calls[-1][2]
    stored = json.loads(json.dumps(as_dict(found)))
    assert stored["lattice"]["lengths"] == list(copper.lengths)
    assert len(stored["clamped"]["tensor"]) == 6


def test_crystals_that_are_not_cubic_have_nine_constants():
    tensor = np.diag([3.0, 3.0, 4.0, 1.0, 1.0, 0.8]) + np.pad(np.ones((3, 3)) - np.eye(3), (0, 3))
    names = elastic_names(ElasticConstants(tensor, np.zeros(6), 0.0))
    assert (names["C33"], names["C66"], names["C13"], len(names)) == (4.0, 0.8, 1.0, 9)


def test_one_part_that_fails_does_not_stop_the_others(monkeypatch):
    class Forces(EMT):
        implemented_properties = ["energy", "free_energy", "forces"]

        def get_stress(self, atoms=None):
            raise NotImplementedError("no stress here")

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    found = properties(Forces(), "Cu")
    assert found.clamped is None and found.relaxed is None
    assert [note.split(":")[0] for note in found.failed] == ["elastic, clamped", "elastic, relaxed"]
    assert found.lattice.lengths_stress is None
    assert found.vacancy.converged and len(found.surfaces) == 3
    assert found.phonons is None and "ase_equinn[phonons]" in found.skipped[0]


def test_report_refuses_bad_input(tmp_path):
    with pytest.raises(ValueError, match="choose a symbol: the potential knows any element"):
        properties(EMT())
    with pytest.raises(ValueError, match="received 'fccc'"):
        properties(EMT(), "Cu", structure="fccc")
    with pytest.raises(ValueError, match="does not know Cu"):
        properties("silicon", "Cu")
    with pytest.raises(ValueError, match="received -5"):
        properties(EMT(), "Cu", liquid=-5)
    with pytest.raises(ValueError, match="time.*received 0"):
        properties(EMT(), "Cu", time=0)
    write(tmp_path / "cell.cif", bulk("Cu", cubic=True))
    with pytest.raises(ValueError, match="structure is of Cu4; received symbol 'Ag'"):
        properties(EMT(), "Ag", structure=tmp_path / "cell.cif")


def command(*arguments, code):
    result = CliRunner().invoke(app, ["properties", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == code, result.output
    return result


def test_command_prints_writes_and_exits(report, tmp_path, monkeypatch):
    found, seen = report[0], {}

    def run(potential, symbol, **options):
        seen.update(potential=potential, symbol=symbol, **options)
        return found

    monkeypatch.setattr(module, "properties", run)
    numbers, figure = tmp_path / "numbers.json", tmp_path / "figure.png"
    options = ("--crystal", "fcc", "--solid-temperature", 300, "--md-time", 0.2, "--json", numbers, "--plot", figure)
    text = command("any", "--symbol", "Cu", *options, code=0).stdout
    assert "3.58983" in text and "solid, 0.2 of 0.2 ps" in text
    assert (seen["potential"], seen["symbol"], seen["structure"], seen["solid"]) == ("any", "Cu", "fcc", 300)
    assert json.loads(numbers.read_text())["potential"] == "any"
    assert figure.read_bytes().startswith(b"\x89PNG")
    lost = found._replace(dynamics=[found.dynamics[0]._replace(stable=False, reason="it blew up")])
    monkeypatch.setattr(module, "properties", lambda *_, **__: lost)
    assert "it blew up" in command("any", code=1).stdout
    monkeypatch.setattr(module, "properties", lambda *_, **__: found._replace(failed=["phonons: no"]))
    assert "phonons: no" in command("any", code=1).stderr


def test_command_refuses(tmp_path):
    assert "exclude each other" in command("silicon", "--crystal", "fcc", "--structure", "a.cif", code=2).stderr
    assert "no structure file" in command("silicon", "--structure", tmp_path / "a.cif", code=2).stderr
    assert "does not know Cu" in command("silicon", "--symbol", "Cu", code=2).stderr
    assert {item.value for item in cli_properties.Crystal} == {"diamond", "fcc", "bcc", "hcp"}


def test_figure_shows_what_was_measured(report):
    found = report[0]
    expected = 2 + bool(found.phonons)
    panels = [axes for axes in plot_properties.plot_properties(found).axes if axes.get_title()]
    assert len(panels) == expected
    bare = plot_properties.plot_properties(found._replace(phonons=None, dynamics=[]))
    assert len([axes for axes in bare.axes if axes.get_title()]) == 1


def test_shipped_silicon_is_close_to_dft(monkeypatch):
    """PBE from the labels: 5.469 A, 153 / 56.5 / 98.9 GPa. As the card says: within 0.3 % and 10 %, no soft phonon."""
    monkeypatch.setattr(properties_phonons, "SUPERCELL", 6.0)  # one cubic cell
    found = properties("silicon")
    assert found.failed == []
    assert found.lattice.lengths[0] == pytest.approx(5.469, rel=0.003)
    assert found.lattice.lengths_stress[0] == pytest.approx(5.469, rel=0.003)
    assert list(elastic_names(found.clamped).values()) == pytest.approx([153.0, 56.5, 98.9], rel=0.1)
    assert 2.5 < found.vacancy.energy < found.vacancy.unrelaxed < 4.5
    if found.phonons:
        assert not found.phonons.imaginary
        assert found.phonons.highest == pytest.approx(15.2, abs=1)
