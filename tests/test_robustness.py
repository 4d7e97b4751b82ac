"""The search for holes finds those that are there, and none in a surface that has none."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read
from ase.neighborlist import neighbor_list
from torch import nn
from typer.testing import CliRunner

from ase_equinn import EquiCalculator, Potential
from ase_equinn.cli import app
from ase_equinn.evaluate_batches import load_potential
from ase_equinn.potential import ARCHITECTURES
from ase_equinn.robustness import as_dict, find_holes, rows
from ase_equinn.robustness_known import closest, evaluate_each, find_known, radii
from ase_equinn.robustness_scan import compress, run_hot, scan_pairs
from ase_equinn.robustness_search import Walker, judge_contacts, random_cell, random_cluster, search

CUTOFF = 5.0


class Morse(nn.Module):
    """Morse pairs with a minimum at 2.5 A, and a Gaussian well of `depth` eV at `place` A, where it may be a hole."""

    def __init__(self, species, cutoff=CUTOFF, depth=0.0, place=1.2, broken=0.0):
        super().__init__()
        self.species, self.cutoff, self.n_layers = tuple(species), cutoff, 1
        self.hyperparameters = dict(species=list(species), cutoff=cutoff, depth=depth, place=place, broken=broken)
        self.depth, self.place, self.broken = depth, place, broken
        self.strength = nn.Parameter(torch.tensor(0.3))

    def forward(self, graph, vectors):
        r = vectors.norm(dim=1)
        decay = torch.exp(-2.4 * (r - 2.5))
        pair = self.strength * (decay.square() - 2 * decay) - self.depth * torch.exp(-(((r - self.place) / 0.3) ** 2))
        pair = (pair + torch.where(r < self.broken, torch.inf, 0.0)) * (1 - (r / self.cutoff) ** 2).clamp(min=0) ** 3
        return vectors.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], 0.5 * pair)


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "morse", (Morse.__module__, "Morse"))


def potential(species=(29,), shortest=2.0, **options) -> Potential:
    data = {"min_distance": shortest, "energy_per_atom": None, "elements": {"Cu": 10}}
    return Potential([Morse(species, **options)], metadata={"training_data": data})


def subject(structure=None, **options):
    ready = load_potential(potential(**options), device="cpu")
    known, holes = find_known(None, ready, structure)
    return ready, known, holes


def quick(model, structure=None, **options):
    return find_holes(
        model, structure, **{"n_cells": 8, "sizes": (2, 4), "picoseconds": 0.1, "device": "cpu"} | options
    )


# ---- verdicts


def test_a_sound_surface_has_no_hole():
    report = quick(potential())
    assert report.holes == [] and as_dict(report)["sound"]
    assert [row[:2] for row in rows(report)] == [
        ("random structures", "Cu"), ("free pair", "Cu-Cu"), ("compression", "Cu"), ("dynamics", "Cu48"),
    ]  # fmt: skip
    assert report.searches[0].lowest > 0.3 - 1e-3  # nothing lies below the crystal
    assert report.hot[0].steps == 100 and 1500 < report.hot[0].temperature < 4500


def test_a_well_at_short_distance_is_found_by_pairs_compression_and_random_cells():
    report = quick(potential(depth=400.0), picoseconds=0)
    (pair,), (crystal,), (cells,) = report.scans, report.compressions, report.searches
    assert 1.3 < pair.turns < 2.0 and pair.holes[0].kind == "no repulsion"
    assert pair.holes[0].atoms.get_distance(0, 1) == pytest.approx(1.2, abs=0.1)
    assert crystal.holes and {hole.kind for hole in cells.holes} >= {"energy"}
    for hole in cells.holes:
        assert len(hole.atoms) >= 2 and hole.detail


def test_a_free_pair_alone_is_judged_below_the_shortest_training_distance_only():
    """A well where the training set has distances, as of a bond, is none."""
    ready, known, _ = subject(depth=3.0, place=2.1, shortest=1.9)
    assert scan_pairs(ready, known)[0].holes == []
    ready, known, _ = subject(depth=300.0, place=1.3, shortest=1.9)
    assert scan_pairs(ready, known)[0].holes


def test_numbers_that_are_not_finite_are_holes_and_do_not_hide_other_structures():
    ready, known, _ = subject(broken=1.2)
    good, bad = (Atoms("Cu2", [[0, 0, 0], [r, 0, 0]]) for r in (2.5, 0.5))
    found = evaluate_each(ready, [good, bad, good])
    assert found[1] is None and found[0]["energy"] == pytest.approx(found[2]["energy"], abs=1e-6)
    assert scan_pairs(ready, known)[0].holes[0].kind == "not finite"
    kinds = [hole.kind for hole in search(ready, known, "Cu", [29], n_cells=12, steps=2).holes]
    assert 0 < kinds.count("not finite") < 12


def test_atoms_that_attract_at_contact_are_holes():
    """Two free atoms at 0.45 of their radii, on the outer wall of a well."""
    ready, *_ = subject()
    weak, *_ = subject(depth=500.0, place=0.95)
    atoms = Atoms("Cu2", [[0, 0, 0], [0.45 * radii(29, 29), 0, 0]], cell=[9, 9, 9], pbc=True)
    for one, kinds in ((ready, []), (weak, ["contact"])):
        walker = Walker(atoms.copy(), -1e9)
        walker.judge(evaluate_each(one, [walker.atoms])[0])
        judge_contacts(one, [walker])
        assert ([walker.hole[0]] if walker.hole else []) == kinds


def test_a_crystal_below_all_training_energies_is_a_hole():
    model = potential()
    energy = subject()[1].energies[29]
    model.metadata["training_data"]["energy_per_atom"] = [energy + 1.0, energy + 2.0]
    report = quick(model, picoseconds=0)
    assert [hole.kind for hole in report.holes][:1] == ["energy"]
    assert report.known.energies[29] == pytest.approx(energy + 1.0)


def test_dynamics_that_fall_into_a_hole_are_stopped():
    ready, known, _ = subject()
    calculator = EquiCalculator(potential(depth=50.0, place=1.9), device="cpu")
    (result,) = run_hot(ready, known, calculator, picoseconds=1.0)
    assert result.holes and result.steps < 1000
    assert np.isfinite(result.holes[0].atoms.positions).all()


def test_a_molecule_is_rearranged_and_keeps_its_atoms():
    ready, known, _ = subject(Atoms("Cu3", [[0, 0, 0], [2.4, 0, 0], [0.3, 2.3, 0]]))
    found = search(ready, known, "Cu3", [], n_cells=6, steps=30)
    assert known.molecule is not None and found.holes == [] and found.n_cells == 6
    assert [result.n_points for result in compress(ready, known)] == [51]


# ---- parts


def test_random_cells_have_the_volume_and_the_distances_asked_for():
    rng = np.random.default_rng(0)
    for n in (1, 2, 9):
        atoms = random_cell(np.full(n, 29), 12.0 * n, (0.5, 0.6), rng)
        assert atoms.cell.volume == pytest.approx(12.0 * n) and len(atoms) == n
        d = neighbor_list("d", atoms, 0.5 * radii(29, 29), self_interaction=False)
        assert not len(d)
    water = random_cluster(molecule("H2O").numbers, 0, rng)
    assert sorted(water.numbers) == [1, 1, 8] and not water.pbc.any()


def test_closest_pair_against_ase():
    ready, _, _ = subject(species=(14, 29))
    rng = np.random.default_rng(1)
    cells = [random_cell(rng.choice([14, 29], n), 9.0 * n, (0.2, 0.9), rng) for n in (1, 3, 8)]
    for atoms, pair in zip(cells, closest(ready, cells)):
        i, j, d = neighbor_list("ijd", atoms, CUTOFF)
        ratios = d / np.array([radii(atoms.numbers[a], atoms.numbers[b]) for a, b in zip(i, j)])
        assert pair.ratio == pytest.approx(ratios.min())
        assert {pair.i, pair.j} == {i[ratios.argmin()], j[ratios.argmin()]}
        assert np.linalg.norm(pair.vector) == pytest.approx(d[ratios.argmin()])
    apart = Atoms("Cu2", [[0, 0, 0], [9, 0, 0]])
    assert closest(ready, [apart, cells[1]])[0] is None


def test_the_way_down_ends_in_a_minimum_of_positions_and_cell():
    ready, _, _ = subject()
    rng = np.random.default_rng(0)
    walker = Walker(random_cell(np.full(4, 29), 60.0, (0.8, 0.9), rng), -1e9)
    first = None
    for _ in range(300):
        (result,) = evaluate_each(ready, [walker.atoms])
        walker.judge(result)
        first = first or result["energy"]
        if walker.done:
            break
        walker.step()
    assert walker.done and result["energy"] < first
    assert abs(result["forces"]).max() < 0.02 and abs(result["stress"]).max() * walker.atoms.cell.volume < 0.05


def test_the_seed_decides_and_bad_arguments_are_named():
    ready, known, _ = subject()
    one, two, other = (search(ready, known, "Cu", [29], n_cells=4, steps=3, seed=s).lowest for s in (1, 1, 2))
    assert one == two != other
    with pytest.raises(ValueError, match="n_cells must be at least 1; received 0"):
        quick(potential(), n_cells=0)
    with pytest.raises(ValueError, match=r"sizes must be \(least, most\); received \(5, 2\)"):
        quick(potential(), sizes=(5, 2))


# ---- the command


@pytest.mark.parametrize("depth, status", [(0.0, 0), (400.0, 1)])
def test_command_tells_by_its_exit_status_and_writes_what_it_found(tmp_path, depth, status):
    potential(depth=depth).save(tmp_path / "model")
    bad, report = tmp_path / "bad.xyz", tmp_path / "report.json"
    arguments = ["holes", str(tmp_path / "model"), "--cells", "8", "--atoms", "2-4", "--ps", "0"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(report), "--out", str(bad), "--device", "cpu"])
    assert result.exit_code == status, result.output
    assert "random structures" in result.stdout and "compression" in result.stdout
    found = json.loads(report.read_text())
    assert found["sound"] == (status == 0) and len(found["tests"]) == 3
    if status:
        frames = read(bad, ":")
        assert len(frames) == len(found["holes"]) and {f.info["hole"] for f in frames} >= {"no repulsion"}
    else:
        assert bad.read_text() == ""


def test_command_refuses_a_range_that_is_none():
    result = CliRunner().invoke(app, ["holes", "silicon", "--atoms", "12-2"])
    assert result.exit_code == 2
