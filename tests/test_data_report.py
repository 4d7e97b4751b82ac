"""The data report finds what was put wrong on purpose, and nothing in sound data."""

import json

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from labelled import copper, label, save

from ase_equinn.data import read_frames
from ase_equinn.data_batches import prepare
from ase_equinn.data_report import data_report, show
from ase_equinn.data_units import work_of_pairs


def frames_of(tmp_path, images, name="a.xyz"):
    return read_frames(save(tmp_path / name, images)).frames


def report(train, **sets):
    symbols = sorted({s for f in train for s in f.atoms.symbols})
    statistics = {
        "warnings": [],
        "reference_energies": dict.fromkeys(symbols, 0.0),
        "reference_energies_from": dict.fromkeys(symbols, "least squares"),
        "avg_num_neighbors": 12.0,
    }
    return data_report({"train": train, **sets}, prepare(train, [4.0]), statistics)


def test_sound_data_gives_no_warning(tmp_path):
    train, valid = frames_of(tmp_path, copper(20)), frames_of(tmp_path, copper(5, seed=1), "b.xyz")
    found = report(train, valid=valid, isolated=[])
    assert not found["warnings"] and not found["outliers"]
    assert json.loads(json.dumps(found)) == found
    part = found["sets"]["train"]
    assert (part["frames"], part["atoms"], part["with_stress"], part["periodic"]) == (20, 80, 20, 20)
    assert part["elements"] == {"Cu": 80} and part["config_types"] == {"bulk": 20}
    energies = [f.energy / 4 for f in train]
    assert part["energy_per_atom"] == [min(energies), max(energies)]
    assert part["force_max"] == max(np.abs(f.forces).max() for f in train)
    distances = [f.atoms.get_all_distances(mic=True)[np.triu_indices(4, 1)].min() for f in train]
    assert found["min_distance"]["Cu-Cu"] == pytest.approx(min(distances))
    assert set(found["sets"]) == {"train", "valid"}


def test_outlier_frames_are_named_with_the_reason(tmp_path):
    images = copper(20)
    images[3].info["REF_energy"] += 40.0
    images[5].arrays["REF_forces"][1, 2] += 300.0
    images[7].positions[1] = images[7].positions[0] + [0.9, 0.0, 0.0]
    found = {item["frame"].split(":")[-1]: item["reason"] for item in report(frames_of(tmp_path, images))["outliers"]}
    assert set(found) == {"3", "5", "7"}
    assert "eV/atom from the median" in found["3"] and "force component" in found["5"]
    assert "Cu-Cu distance 0.90 A (atoms 0 and 1)" in found["7"]


def test_duplicates_within_and_between_sets(tmp_path):
    images = copper(6)
    train = frames_of(tmp_path, [*images, images[2]])
    valid = frames_of(tmp_path, [images[1], *copper(2, seed=9)], "b.xyz")
    found = report(train, valid=valid)["warnings"]
    assert found[0] == "1 structures stand more than once in train"
    assert found[1].startswith("1 structures of valid stand in train too") and found[1].endswith("b.xyz:0")


def test_energies_per_atom_are_noticed(tmp_path):
    images = []
    for k, atoms in enumerate(copper(12)):
        atoms = label(atoms.repeat((1 + k % 2, 1, 1)))
        atoms.info["REF_energy"] = atoms.info["REF_energy"] / len(atoms) - 3.7  # DFT has an offset per atom, EMT none
        images.append(atoms)
    found = report(frames_of(tmp_path, images))["warnings"]
    assert any("look like energies per atom" in text for text in found)


def test_net_force_is_noticed(tmp_path):
    images = copper(8)
    images[4].arrays["REF_forces"][0] += 1.0
    found = report(frames_of(tmp_path, images))["warnings"]
    assert any("do not add up to zero" in text and text.endswith("a.xyz:4") for text in found)


def test_atoms_without_neighbours_and_partial_references(tmp_path):
    train = frames_of(tmp_path, [label(molecule("O2")), label(bulk("Cu", cubic=True))])
    train[0].atoms.positions[1] += 20.0
    statistics = {
        "warnings": ["from the fit"],
        "reference_energies": {"O": -1.0, "Cu": 0.0},
        "reference_energies_from": {"O": "isolated atom, iso.xyz:0", "Cu": "least squares"},
        "avg_num_neighbors": 12.0,
    }
    found = data_report({"train": train}, prepare(train, [4.0]), statistics)["warnings"]
    assert found[0] == "from the fit"
    assert any("no reference energy is given for Cu" in text for text in found)
    assert any("2 atoms of the training set have no neighbour" in text for text in found)


def near_pairs(n=10, seed=0, kind="crystal"):
    """Structures in groups that differ little, as strained pairs and neighbouring MD steps do."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        if kind == "crystal":
            base = copper(1, seed=int(rng.integers(10**6)))[0]
        else:
            base = molecule("CH3CH2OH")
            base.rattle(0.1, rng=rng)
        for _ in range(2):
            atoms = base.copy()
            if kind == "crystal":
                atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.01, (3, 3))), scale_atoms=True)
            else:
                atoms.rotate(rng.uniform(0, 360), rng.normal(size=3))
            atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
            images.append(label(atoms))
    return images


def test_work_explains_energy_in_sound_labels(tmp_path):
    """EMT is exact: the factors are 1 to the error of the trapezoidal rule."""
    work = work_of_pairs(frames_of(tmp_path, near_pairs()))
    assert work.n_pairs >= 10
    assert work.forces == pytest.approx(1.0, abs=0.02) and work.stress == pytest.approx(1.0, abs=0.02)
    assert work.r_squared > 0.99 and not work.warnings()


def test_molecules_are_superposed(tmp_path):
    """Rotated copies: without superposition the work would mean nothing."""
    work = work_of_pairs(frames_of(tmp_path, near_pairs(kind="molecule")))
    assert work.forces == pytest.approx(1.0, abs=0.05) and np.isnan(work.stress)


@pytest.mark.parametrize(
    "factor, words",
    [
        (-1.0, ["stresses do not match", "sign is opposite to ASE's"]),
        (160.2177, ["stresses in GPa"]),
        (-1602.177, ["sign is opposite", "stresses in kbar"]),
    ],
)
def test_wrong_stress_is_recognised(tmp_path, factor, words):
    frames = [f._replace(stress=f.stress * factor) for f in frames_of(tmp_path, near_pairs())]
    (text,) = work_of_pairs(frames).warnings()
    assert all(word in text for word in words), text
    assert text in report(frames)["warnings"]


@pytest.mark.parametrize(
    "factor, words", [(1 / 27.2114, "energies in Hartree"), (1000.0, "energies in meV"), (-1.0, "sign")]
)
def test_wrong_energies_are_recognised(tmp_path, factor, words):
    frames = [
        f._replace(energy=f.energy * factor, stress=None) for f in frames_of(tmp_path, near_pairs(kind="molecule"))
    ]
    (text,) = work_of_pairs(frames).warnings()
    assert "forces do not match the energies" in text and words in text


def test_too_few_pairs_tell_nothing(tmp_path):
    frames = [f._replace(stress=-f.stress) for f in frames_of(tmp_path, near_pairs(2))]
    assert not work_of_pairs(frames).warnings()


def test_huge_stress_without_pairs(tmp_path):
    frames = [f._replace(stress=np.eye(3) * 3.0) for f in frames_of(tmp_path, copper(3))]
    assert any("GPa or kbar" in text for text in report(frames)["warnings"])


def test_report_is_printed(tmp_path):
    from rich.console import Console

    images = copper(8)
    images[3].info["REF_energy"] += 40.0
    console = Console(record=True, width=120, quiet=False, file=open(tmp_path / "out", "w"))
    show(report(frames_of(tmp_path, images)), console)
    text = console.export_text()
    assert "train" in text and "a.xyz:3" in text and "reference energies (eV): Cu 0.0000 (least squares)" in text


def test_emt_labels_are_emts():
    """The helper's own claim: labels are what EMT gives."""
    atoms = copper(1)[0]
    bare = atoms.copy()
    bare.calc = EMT()
    np.testing.assert_array_equal(bare.get_forces(), atoms.arrays["REF_forces"])
