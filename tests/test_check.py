"""`check` passes sound calculators, and each of its checks fails for a calculator broken in its own way."""

import io
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read, write
from pair_calculator import PairCalculator
from rich.console import Console
from torch import nn

from ase_equinn.calculator import EquiCalculator
from ase_equinn.check import as_dict, check, check_table, crystal_of
from ase_equinn.models.schnet import SchNet
from ase_equinn.potential import Potential

CRYSTAL = bulk("Cu", "fcc", a=3.6, cubic=True)


def failed(results):
    return {result.name for result in results if not result.passed}


class Broken(PairCalculator):
    """A PairCalculator whose results `damage(results, atoms, count)` spoils."""

    def __init__(self, damage):
        super().__init__()
        self.damage = damage

    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        change = self.damage(self.results, atoms, self.count)
        if change is not None:
            self.results["energy"] = self.results["free_energy"] = self.results["energy"] + change


def wrong_force(results, atoms, count):
    results["forces"][0] *= 1.001


def missing_stress_term(results, atoms, count):
    if "stress" in results:
        results["stress"][3:] = 0


def no_stress(results, atoms, count):
    results.pop("stress", None)


def curl(results, atoms, count):
    x = atoms.positions - atoms.positions.mean(0)
    results["forces"] += 1e-3 * np.cross([0, 0, 1], x)


def preferred_axis(results, atoms, count):
    return 1e-5 * sum(force[0] ** 2 for force in results["forces"])


def handedness(results, atoms, count):
    """Changes sign under inversion, is the same under every proper rotation."""
    f = results["forces"]
    return 1e-3 * np.linalg.det(f[:3]) if len(f) >= 3 else 0.0


def fixed_frame(results, atoms, count):
    return 1e-6 * atoms.positions.sum()


def index_dependent(results, atoms, count):
    return 1e-4 * (results["forces"][0] ** 2).sum()


def not_extensive(results, atoms, count):
    return 1e-6 * len(atoms) ** 2


def history(results, atoms, count):
    return 1e-6 * count


def wraps_the_caller(results, atoms, count):
    atoms.positions[0] += 1e-9


def lonely_atom_moves(results, atoms, count):
    if len(atoms) == 1:
        results["forces"][0, 2] = 1e-4


def crash(results, atoms, count):
    if len(atoms) == 1:
        raise IndexError("no edges")


BREAKAGES = {
    "forces": [wrong_force, curl],
    "stress": [missing_stress_term, no_stress],
    "rotation": [preferred_axis],
    "inversion": [handedness],
    "translation": [fixed_frame],
    "permutation": [index_dependent],
    "wrapping": [fixed_frame],
    "supercell": [not_extensive],
    "repeatable": [history, wraps_the_caller],
    "isolated atoms": [lonely_atom_moves, crash],
    "NVE drift": [curl],
}


@pytest.mark.parametrize("structure", [CRYSTAL, bulk("Cu", "fcc", a=3.6), molecule("CH3CH2OH"), "slab"])
def test_sound_calculator_passes_every_check(structure):
    if isinstance(structure, str):
        structure = bulk("Cu", "fcc", a=3.6, cubic=True)
        structure.pbc = (True, True, False)
    results = check(PairCalculator(), structure)
    assert not failed(results)
    names = {result.name for result in results}
    assert ("stress" in names) == structure.pbc.all()
    assert ("supercell" in names) == ("wrapping" in names) == structure.pbc.any()


@pytest.mark.parametrize(("name", "damage"), [(name, damage) for name, all_ in BREAKAGES.items() for damage in all_])
def test_broken_calculator_fails_the_check_that_looks_for_it(name, damage):
    results = {result.name: result for result in check(Broken(damage), CRYSTAL)}
    assert not results[name].passed
    if damage is crash:
        assert "IndexError: no edges" in results[name].note
    if damage is no_stress:
        assert "no stress" in results[name].note


@pytest.mark.parametrize("damage", [wrong_force, missing_stress_term, no_stress, lonely_atom_moves])
def test_other_checks_pass_where_they_are_not_concerned(damage):
    """A single fault is named, not drowned: forces and energies at the cutoff, symmetries and the rest still pass."""
    expected = {
        wrong_force: {"forces", "permutation", "supercell", "NVE drift"},
        missing_stress_term: {"stress", "rotation"},
        no_stress: {"stress"},
        lonely_atom_moves: {"isolated atoms"},
    }
    found = failed(check(Broken(damage), CRYSTAL))
    assert found <= expected[damage]
    assert found


def test_only_nearest_images_is_a_wrong_neighbour_list():
    """A calculator that takes the positions as they come, and one image each way, is right for wrapped atoms only."""

    class Unwrapped(PairCalculator):
        def calculate(self, atoms=None, *args, **kwargs):
            inside = atoms.copy()
            inside.positions = np.clip(inside.positions, -1, atoms.cell.lengths().max() + 1)
            super().calculate(inside, *args, **kwargs)

    assert {"wrapping", "translation"} <= failed(check(Unwrapped(), CRYSTAL))


class Truncated(PairCalculator):
    """No envelope: energy and force jump. power = 1: the energy is continuous, the force jumps by 0.01 eV/A."""

    def __init__(self, power):
        super().__init__()
        self.power = power

    def pair(self, r):
        x, f = np.exp(-self.a * (r - self.r0)), 1 - r / self.cutoff
        morse, slope = self.depth * (x * x - 2 * x), -2 * self.a * self.depth * (x * x - x)
        return morse * f**self.power, slope * f**self.power - self.power / self.cutoff * morse * f ** (self.power - 1)


def test_jumps_at_the_cutoff_are_found_without_being_told_where_it_is():
    results = {r.name: r for r in check(Truncated(0), CRYSTAL)}
    assert not results["energy at cutoff"].passed
    assert not results["forces at cutoff"].passed
    results = {r.name: r for r in check(Truncated(1), CRYSTAL)}
    assert results["energy at cutoff"].passed
    assert not results["forces at cutoff"].passed
    assert "5.000 A" in results["forces at cutoff"].note


def test_jump_that_ase_emt_has_is_found():
    """EMT's energy drops to zero at 5.88 A, some 1e-5 eV: a real calculator with a real fault, and no other."""
    assert failed(check(EMT(), CRYSTAL)) == {"energy at cutoff", "forces at cutoff"}


# ---- potentials


class Springs(nn.Module):
    """E_i = sum_j k (1 - r^2/c^2)^3, through an offset that float32 cannot carry if `lossy`."""

    def __init__(self, species=(29,), cutoff=4.0, lossy=0.0):
        super().__init__()
        self.species, self.cutoff, self.lossy = tuple(species), cutoff, lossy
        self.strength = nn.Parameter(torch.tensor(1.0))
        self.hyperparameters = {}

    def forward(self, graph, vectors):
        pair = self.strength * (1 - (vectors**2).sum(-1) / self.cutoff**2).clamp(min=0) ** 3
        energy = pair.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], pair)
        return (energy + self.lossy) - self.lossy


def test_float32_is_compared_with_float64():
    good = check(Potential(Springs(), reference_energies={29: -5.0}), CRYSTAL)
    assert not failed(good)
    assert {"float32 energy", "float32 forces"} <= {result.name for result in good}
    assert "float32 energy" in failed(check(Potential(Springs(lossy=1e5)), CRYSTAL))


class Noisy(Springs):
    """Forces that float32 spoils: the energy is a rapidly oscillating function of a large argument."""

    def forward(self, graph, vectors):
        energy = super().forward(graph, vectors)
        return energy + 1e-6 * torch.sin(1e5 * energy)


def test_float32_forces_fail_alone():
    assert "float32 forces" in failed(check(Potential(Noisy()), CRYSTAL))


def test_isolated_energy_on_record_is_compared():
    class Lying(Potential):
        def isolated_energy(self, number):
            return super().isolated_energy(number) + 1e-3

    model = Springs()
    assert not failed(check(Potential(model), CRYSTAL))
    assert failed(check(EquiCalculator(Lying(model)), CRYSTAL)) == {"isolated atoms"}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(1)
    model = SchNet((14,), 4.0, avg_num_neighbors=16.0, n_channels=8, n_layers=1, n_basis=8)
    Potential(model, reference_energies={14: -3.0}).save(tmp_path)
    frames = []
    for seed in range(2):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EquiCalculator(tmp_path, dtype="float64", device="cpu")
        atoms.get_forces()
        frames.append(atoms)
    write(tmp_path / "check.xyz", frames)
    return tmp_path


def test_folder_is_judged_on_its_own_structures_and_values(folder):
    results = check(folder)
    assert not failed(results)
    assert [result.note for result in results if result.name == "stored values"] == ["2 structures"]
    for change in ("energy", "forces", "stress"):
        frames = read(folder / "check.xyz", ":")
        broken = [frame.copy() for frame in frames]
        for frame, original in zip(broken, frames, strict=True):
            frame.calc = original.calc
        broken[1].calc.results[change] = broken[1].calc.results[change] + 1e-3
        original = (folder / "check.xyz").read_bytes()
        write(folder / "check.xyz", broken)
        assert failed(check(folder)) == {"stored values"}
        (folder / "check.xyz").write_bytes(original)


def test_report_is_json_and_a_table(folder):
    results = check(Broken(crash), CRYSTAL)
    report = json.loads(json.dumps(as_dict(results), allow_nan=False))
    assert report["passed"] is False
    assert {entry["name"] for entry in report["checks"] if not entry["passed"]} == failed(results)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(check_table(results))
    text = console.export_text()
    assert all(result.name in text for result in results)
    assert text.count("FAIL") == len(failed(results))
    assert as_dict(check(PairCalculator(), CRYSTAL))["passed"] is True


def test_progress_and_loosened_tolerances():
    seen = []
    results = check(Broken(wrong_force), CRYSTAL, loosen=1e6, progress=lambda *call: seen.append(call))
    assert [name for name, _, _ in seen] == [result.name for result in results]
    assert {total for _, _, total in seen} == {len(results)}
    assert results[0].passed
    assert results[0].tolerance == pytest.approx(10, rel=0.9)


def test_structure_is_found_or_asked_for(tmp_path):
    with pytest.raises(ValueError, match="needs a structure"):
        check(PairCalculator())
    with pytest.raises(ValueError, match="does not know Si"):
        check(Potential(Springs()), bulk("Si"))
    with pytest.raises(ValueError, match="no atoms"):
        check(PairCalculator(), Atoms())
    with pytest.raises(FileNotFoundError, match="nothing.xyz"):
        check(PairCalculator(), tmp_path / "nothing.xyz")
    assert not failed(check(Potential(Springs()))), "a crystal of copper, made up"


@pytest.mark.parametrize("numbers", [[14], [29], [22], [6], [1, 6, 8], [31, 33], [2]])
def test_crystal_is_made_of_all_elements_at_sensible_distances(numbers):
    atoms = crystal_of(numbers, np.random.default_rng(0))
    assert set(atoms.numbers) == set(numbers)
    assert atoms.pbc.all()
    assert 8 <= len(atoms) <= 64
    assert (atoms.repeat(2).get_all_distances(mic=True) + 9 * np.eye(8 * len(atoms))).min() > 1.2


def test_calculator_given_stays_as_it_is():
    calc = EquiCalculator(Potential(Springs()), dtype="float32", device="cpu")
    atoms = CRYSTAL.copy()
    before = atoms.copy()
    check(calc, atoms)
    assert calc.parameters["dtype"] == "float32"
    assert calc.timings["count"] == 0
    assert atoms == before
    assert atoms.calc is None
