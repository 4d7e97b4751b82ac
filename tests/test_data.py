"""Reading labelled frames: where labels stand, what they must look like, and where files are found."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from labelled import copper, save

from ase_equinn.data import (
    Keys,
    apply_weights,
    is_isolated_atom,
    read_frames,
    split,
    write_frames,
)
from ase_equinn.data_batches import EpochBatches, join, prepare
from ase_equinn.metrics import Prediction


def numbers(frame):
    return frame.energy, frame.forces, frame.stress


def same(a, b, atol=1e-7):
    return all(np.allclose(x, y, rtol=0, atol=atol) for x, y in zip(numbers(a), numbers(b)))


@pytest.fixture
def images():
    return copper(3)


def test_default_names(tmp_path, images):
    found = read_frames(save(tmp_path / "a.xyz", images))
    for frame, atoms in zip(found.frames, images, strict=True):
        assert frame.energy == pytest.approx(atoms.info["REF_energy"], abs=1e-9)
        np.testing.assert_allclose(frame.forces, atoms.arrays["REF_forces"], atol=1e-8)  # the digits of extxyz
        np.testing.assert_allclose(frame.stress, atoms.info["REF_stress"], atol=1e-9)
        assert frame.config_type == "bulk"
    assert found.frames[2].origin == f"{tmp_path / 'a.xyz'}:2"
    assert not found.notes


def test_plain_names_that_ase_moves_to_a_calculator(tmp_path, images):
    """ASE's reader takes energy, forces and stress out of info and arrays: they count as labels all the same."""
    plain = []
    for atoms in images:
        bare = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        bare.calc = SinglePointCalculator(
            bare, energy=atoms.info["REF_energy"], forces=atoms.arrays["REF_forces"], stress=atoms.info["REF_stress"]
        )
        plain.append(bare)
    reference = read_frames(save(tmp_path / "ref.xyz", images)).frames
    found = read_frames(save(tmp_path / "plain.xyz", plain))
    assert all(same(a, b) for a, b in zip(found.frames, reference, strict=True))
    assert "plain names energy, forces, stress" in found.notes[0]


def test_reference_labels_win_over_plain_ones(tmp_path, images):
    for atoms in images:
        atoms.calc = SinglePointCalculator(atoms, energy=123.0, forces=np.ones((4, 3)))
    path = tmp_path / "both.xyz"
    write(path, images, format="extxyz", columns=["symbols", "positions", "REF_forces", "forces"])
    assert "energy=123.0" in path.read_text()
    found = read_frames(path)
    assert found.frames[0].energy == pytest.approx(images[0].info["REF_energy"])
    assert any("both 'REF_energy' and 'energy'" in note for note in found.notes)


def test_names_of_the_user(tmp_path, images):
    for atoms in images:
        atoms.info["dft"] = atoms.info.pop("REF_energy")
        atoms.arrays["gradient_free_f"] = atoms.arrays.pop("REF_forces")
    path = save(tmp_path / "a.xyz", images)
    frames = read_frames(path, Keys(energy="dft", forces="gradient_free_f")).frames
    assert frames[1].energy == pytest.approx(images[1].info["dft"])
    with pytest.raises(ValueError, match=r"no frame has the energy key 'DFT'; the file has, per frame: .*'dft'"):
        read_frames(path, Keys(energy="DFT"))


def test_no_label_at_all_names_what_the_file_has(tmp_path, images):
    for atoms in images:
        atoms.info = {"total_energy": 1.0}
        del atoms.arrays["REF_forces"]
    with pytest.raises(ValueError, match=r"no frame has energies or forces.*total_energy.*data: \{keys:"):
        read_frames(save(tmp_path / "a.xyz", images))


@pytest.mark.parametrize("name", ["REF_virial", "REF_virials", "virial"])
@pytest.mark.parametrize("shape", [(3, 3), (9,)])
def test_virial_is_minus_volume_times_stress(tmp_path, images, name, shape):
    reference = read_frames(save(tmp_path / "ref.xyz", images)).frames
    for atoms in images:
        atoms.info[name] = (-atoms.info.pop("REF_stress") * atoms.cell.volume).reshape(shape)
    found = read_frames(save(tmp_path / "a.xyz", images)).frames
    assert all(same(a, b) for a, b in zip(found, reference, strict=True))


def test_voigt_stress(tmp_path, images):
    reference = read_frames(save(tmp_path / "ref.xyz", images)).frames
    for atoms in images:
        s = atoms.info["REF_stress"]
        atoms.info["REF_stress"] = [s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]]
    assert all(same(a, b) for a, b in zip(read_frames(save(tmp_path / "a.xyz", images)).frames, reference))


def test_missing_labels_are_none(tmp_path, images):
    del images[0].info["REF_stress"], images[1].info["REF_energy"], images[2].arrays["REF_forces"]
    path = tmp_path / "a.xyz"
    for k, atoms in enumerate(images):
        write(path, atoms, format="extxyz", append=k > 0)
    a, b, c = read_frames(path).frames
    assert a.stress is None and b.energy is None and c.forces is None
    assert a.forces is not None and b.stress is not None and c.energy is not None


def test_stress_of_a_slab_is_left_out(tmp_path, images):
    images[0].pbc = [True, True, False]
    found = read_frames(save(tmp_path / "a.xyz", images))
    assert found.frames[0].stress is None and found.frames[1].stress is not None
    assert "not periodic in all directions" in found.notes[0] and "a.xyz:0" in found.notes[0]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("REF_energy", np.nan, r"a.xyz:1: REF_energy holds nan"),
        ("REF_energy", "high", r"a.xyz:1: REF_energy must be numbers, got 'high'"),
        ("REF_energy", [1.0, 2.0], r"REF_energy must have shape \(\), got \(2,\)"),
        ("REF_stress", [1.0, 2.0], r"REF_stress must have shape \(3, 3\), got \(2,\)"),
        ("REF_stress", np.arange(9.0).reshape(3, 3), "REF_stress must be a symmetric tensor"),
        ("REF_stress", np.diag([0.0, np.inf, 0.0]), "REF_stress holds inf"),
    ],
)
def test_bad_label_names_frame_and_value(tmp_path, images, name, value, message):
    images[1].info[name] = value
    with pytest.raises(ValueError, match=message):
        read_frames(save(tmp_path / "a.xyz", images))


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="'none.xyz' does not exist"):
        read_frames("none.xyz")
    (tmp_path / "bad.xyz").write_text("no structure here\n")
    with pytest.raises(ValueError, match="bad.xyz: ASE cannot read this file"):
        read_frames(tmp_path / "bad.xyz")


def test_several_files_keep_their_order(tmp_path, images):
    a, b = save(tmp_path / "a.xyz", images[:1]), save(tmp_path / "b.xyz", images[1:])
    frames = read_frames([a, b]).frames
    assert [frame.origin for frame in frames] == [f"{a}:0", f"{b}:0", f"{b}:1"]


def test_weights_of_config_types(tmp_path, images):
    images[1].info["config_type"] = "vacancy"
    frames = read_frames(save(tmp_path / "a.xyz", images), weights={"vacancy": 3.0, "bulk": 0.0}).frames
    assert [frame.weight for frame in frames] == [0.0, 3.0, 0.0]
    with pytest.raises(ValueError, match=r"weight of 'bulk' must be finite and >= 0, got -1"):
        apply_weights(frames, {"bulk": -1})


def test_isolated_atoms():
    def frame_of(n=1, pbc=False, config_type=""):
        from ase_equinn.data import Frame

        return Frame(
            Atoms(f"H{n}", positions=np.arange(3.0 * n).reshape(n, 3), pbc=pbc), -13.6, None, None, config_type
        )

    assert is_isolated_atom(frame_of())
    assert is_isolated_atom(frame_of(pbc=True, config_type="IsolatedAtom"))
    assert is_isolated_atom(frame_of(pbc=True, config_type="isolated_atom"))
    assert not is_isolated_atom(frame_of(pbc=True))
    assert not is_isolated_atom(frame_of(n=2))
    assert not is_isolated_atom(frame_of()._replace(energy=None))


def test_split_is_seeded_disjoint_and_complete(tmp_path):
    frames = read_frames(save(tmp_path / "a.xyz", copper(10))).frames
    train, valid = split(frames, 0.2, seed=1)
    assert len(valid) == 2 and sorted(f.origin for f in train + valid) == sorted(f.origin for f in frames)
    assert [f.origin for f in split(frames, 0.2, seed=1)[1]] == [f.origin for f in valid]
    assert {tuple(f.origin for f in split(frames, 0.2, seed=s)[1]) for s in range(5)} != {
        tuple(f.origin for f in valid)
    }
    with pytest.raises(ValueError, match="0.9 of 1 frames leaves none"):
        split(frames[:1], 0.9, 0)


def test_written_frames_read_back(tmp_path, images):
    frames = read_frames(save(tmp_path / "a.xyz", images)).frames
    predictions = [Prediction(i + 0.5, f.forces + 1.0, f.stress + 1.0) for i, f in enumerate(frames)]
    predictions[2] = predictions[2]._replace(stress=None)
    write_frames(tmp_path / "out.xyz", frames, predictions)
    assert all(same(a, b) for a, b in zip(read_frames(tmp_path / "out.xyz").frames, frames, strict=True))
    for atoms, p in zip(read(tmp_path / "out.xyz", ":"), predictions):
        assert atoms.get_potential_energy() == p.energy
        np.testing.assert_allclose(atoms.get_forces(), p.forces, atol=1e-8)
        if p.stress is not None:
            np.testing.assert_allclose(atoms.get_stress(voigt=False), p.stress, atol=1e-9)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.xyz", "out.xyz"]


def test_batches_carry_labels_and_zero_weights(tmp_path, images):
    del images[0].info["REF_stress"]
    frames = read_frames(save(tmp_path / "a.xyz", images), weights={"bulk": 2.0}).frames
    batch = join(prepare(frames, [4.0]))
    assert batch.graphs[0].n_graphs == 3 and batch.positions.shape == (12, 3)
    assert batch.virial_weight.tolist() == [0.0, 2.0, 2.0] and batch.energy_weight.tolist() == [2.0] * 3
    np.testing.assert_allclose(batch.energy, [f.energy for f in frames])
    np.testing.assert_allclose(batch.virial[1], frames[1].stress * frames[1].atoms.cell.volume)


def test_unusable_structure_is_named(tmp_path, images):
    images[1].positions[2] = images[1].positions[0]
    frames = read_frames(save(tmp_path / "a.xyz", images)).frames
    with pytest.raises(ValueError, match=r"a.xyz:1: atoms 0 and 2 are"):
        prepare(frames, [4.0])
    with pytest.raises(ValueError, match=r"a.xyz:0: atom 0 has atomic number 29 \(Cu\); supported: Si"):
        prepare(frames[:1], [4.0], species=[14])


def test_epochs_visit_every_frame_in_an_order_of_their_own(tmp_path):
    samples = prepare(read_frames(save(tmp_path / "a.xyz", copper(7))).frames, [4.0])
    orders = []
    for epoch in (0, 1, 0):
        batches = EpochBatches(samples, 3, seed=5)
        batches.epoch = epoch
        energies = [batch.energy.tolist() for batch in batches]
        assert [len(e) for e in energies] == [3, 3, 1] and len(batches) == 3
        orders.append([e for group in energies for e in group])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(float(s.energy) for s in samples)
