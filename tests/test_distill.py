"""distill: structures near the training set with a committee's mean as labels."""

import numpy as np
import pytest
import toy
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from labelled import copper, save
from typer.testing import CliRunner

from ase_equinn import EquiCalculator, Potential
from ase_equinn.cli import app
from ase_equinn.data import Frame, read_frames, write_frames
from ase_equinn.data_batches import prepare
from ase_equinn.distill import distill, neighbourhood
from ase_equinn.radial_transforms import covalent_radius
from ase_equinn.train import train
from ase_equinn.train_config import load_config
from ase_equinn.train_terms import repulsion

SCALES = (1.0, 1.2, 1.7)


@pytest.fixture(scope="module", autouse=True)
def toys():
    """Models without kernels: nothing is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        yield


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("members"), []
    for scale in SCALES:
        torch.manual_seed(0)
        found.append(str(Potential(toy.Pair((29,), 4.0), scale=scale).save(folder / f"{scale}").parent))
    return found


def test_labels_are_the_committees_mean(members):
    frames = distill(members, copper(2), copies=3)
    assert len(frames) == 6 and {frame.config_type for frame in frames} == {"distilled"}
    mean = EquiCalculator(members, dtype="float64")
    for frame in frames:
        assert frame.stress is None
        assert frame.energy == pytest.approx(mean.get_potential_energy(frame.atoms), abs=1e-5)
        np.testing.assert_allclose(frame.forces, mean.get_forces(frame.atoms), atol=1e-5)


def test_copies_move_by_up_to_the_amounts_asked_for():
    crystal = copper(1)[0] * (3, 3, 3)
    before = crystal.copy()
    found = neighbourhood([crystal], copies=40, rattle=0.02, strain=0.0)
    moved = np.array([np.std(copy.positions - crystal.positions) for copy in found])
    assert len(found) == 40 and moved.max() < 0.022 and moved.min() < 0.008 and np.ptp(moved) > 0.012
    strained = neighbourhood([crystal], copies=40, rattle=0.0, strain=0.03)
    for copy in strained:
        np.testing.assert_allclose(copy.get_scaled_positions(), crystal.get_scaled_positions(), atol=1e-9)
    lengths = [copy.cell.lengths() / crystal.cell.lengths() - 1 for copy in strained]
    assert 0.01 < np.abs(lengths).max() < 0.15
    assert crystal == before


def test_no_copy_has_atoms_much_nearer_than_the_structures():
    structures = [molecule("CH3CH2OH"), molecule("H2O")]
    rattled = neighbourhood(structures, copies=30, rattle=0.3)

    def nearest(atoms):
        radii = np.array([covalent_radius(z) for z in atoms.numbers])
        ratios = atoms.get_all_distances() / (radii[:, None] + radii)
        return ratios[~np.eye(len(atoms), dtype=bool)].min()

    assert min(map(nearest, rattled)) > 0.9 * min(map(nearest, structures)) - 1e-9
    assert any(
        np.abs(a.positions - b.positions).max() > 0.1
        for a, b in zip(rattled, [s for s in structures for _ in range(30)])
    )


def test_the_same_seed_gives_the_same_and_another_does_not():
    one, two, other = (neighbourhood([molecule("H2O")], copies=2, seed=seed) for seed in (1, 1, 2))
    assert all(a == b for a, b in zip(one, two)) and not any(a == b for a, b in zip(one, other))
    assert not one[0].pbc.any() and one[0].cell.rank == 0


def test_single_atoms_have_no_neighbourhood():
    assert neighbourhood([Atoms("H")]) == []
    with pytest.raises(ValueError, match="more than one atom, got 1"):
        distill([], [Atoms("H")])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"copies": 0}, "copies must be at least 1, got 0"),
        ({"rattle": -0.1}, "rattle must be a finite number, 0 or more, got -0.1"),
        ({"strain": float("nan")}, "strain must be a finite number, 0 or more, got nan"),
    ],
)
def test_amounts_without_meaning_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        neighbourhood([molecule("H2O")], **options)


def test_frames_without_labels_are_labelled_as_they_are(members, tmp_path):
    structures = [atoms.copy() for atoms in copper(2)]
    write(tmp_path / "bare.xyz", structures)
    out = tmp_path / "distilled.xyz"
    options = ["--copies", "1", "--rattle", "0", "--strain", "0"]
    result = CliRunner().invoke(
        app, ["distill", *members, "--data", str(tmp_path / "bare.xyz"), "-o", str(out), *options]
    )
    assert result.exit_code == 0, result.output
    frames = read_frames(out).frames
    for frame, atoms in zip(frames, structures, strict=True):
        np.testing.assert_allclose(frame.atoms.positions, atoms.positions, atol=1e-7)
        assert np.isfinite(frame.energy) and np.isfinite(frame.forces).all()


def test_the_command_writes_a_training_file(members, tmp_path):
    data, out = save(tmp_path / "train.xyz", copper(3)), tmp_path / "distilled.xyz"
    command = ["distill", *members, "--data", str(data), "-o", str(out), "--copies", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    frames = read_frames(out).frames
    assert len(frames) == 6 and all(frame.energy is not None and frame.forces is not None for frame in frames)
    assert {atoms.info["config_type"] for atoms in read(out, ":")} == {"distilled"}
    before = out.read_bytes()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "choose another file, or --overwrite" in result.output
    assert out.read_bytes() == before
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0


def test_a_student_has_the_core_that_the_labels_allow(tmp_path):
    """Not the one that the copies do, which come nearer."""
    rng = np.random.default_rng(0)

    def frames(nearest, kind):
        pairs = [Atoms("Si2", [[0, 0, 0], [d, 0, 0]]) for d in (nearest, 2.3, 2.6)]
        return [Frame(pair, rng.normal(), rng.normal(size=(2, 3)), None, kind) for pair in pairs]

    write_frames(tmp_path / "train.xyz", frames(2.0, ""))
    write_frames(tmp_path / "distilled.xyz", frames(1.8, "distilled"))
    result = train(
        {
            "data": {
                "train": [str(tmp_path / "train.xyz"), str(tmp_path / "distilled.xyz")],
                "valid": str(tmp_path / "train.xyz"),
            },
            "output": str(tmp_path / "student"),
            "model": {"name": "schnet", "cutoff": 4.0, "n_channels": 4, "n_layers": 1, "n_basis": 4},
            "training": {"epochs": 1},
        },
        quiet=True,
    )
    labelled = read_frames(tmp_path / "train.xyz").frames
    wanted = repulsion(load_config(tmp_path / "student" / "train.yaml"), [14], prepare(labelled, [4.0]))
    assert result.potential.models[1].radii == pytest.approx(wanted.radii) and 2 * wanted.radii[0] > 2.0


def test_a_missing_file_leaves_nothing(members, tmp_path):
    out = tmp_path / "distilled.xyz"
    result = CliRunner().invoke(app, ["distill", *members, "--data", str(tmp_path / "no.xyz"), "-o", str(out)])
    assert result.exit_code == 2 and "no.xyz" in result.output and not out.exists()
