"""`members: n`: networks with seeds of their own, one after the other, whose mean is the potential."""

import os
import signal

import numpy as np
import pytest
from ase.io import read
from labelled import same, tensors, three_sets

from ase_equinn.calculator import EquiCalculator
from ase_equinn.potential import Potential
from ase_equinn.train import train
from ase_equinn.train_checkpoint import CheckpointError
from ase_equinn.train_config import ConfigError, load_config
from ase_equinn.train_members import member_of
from ase_equinn.train_sets import read_sets

MODEL = {"name": "schnet", "cutoff": 4.0, "n_channels": 8, "n_layers": 2, "n_basis": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return three_sets(tmp_path_factory.mktemp("data"))


def config(data, output, members=3, **more):
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 0.01}
    wanted = {"data": data, "output": str(output), "model": MODEL, "training": training, "members": members, "seed": 5}
    return wanted | more


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "copper"
    return folder, train(config(data, folder), quiet=True)


def forces(potential, atoms):
    atoms = atoms.copy()
    atoms.calc = EquiCalculator(potential, device="cpu", dtype="float64")
    return atoms.get_forces()


def test_the_potential_is_the_mean_of_networks_with_seeds_of_their_own(finished, data, tmp_path):
    folder, _ = finished
    atoms = read(data["test"], "0")
    own = [forces(folder / "members" / str(k), atoms) for k in range(3)]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(own, own[1:]))
    np.testing.assert_allclose(forces(folder, atoms), np.mean(own, axis=0), atol=1e-10)
    alone = train(config(data, tmp_path / "one", members=1, seed=6), quiet=True)
    assert same(tensors(alone.folder), tensors(folder / "members" / "1"))


def test_the_folder_says_all_of_it(finished):
    folder, result = finished
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "README.md", "train.yaml", "check.xyz", "parity.png", "members",
    }  # fmt: skip
    assert load_config(folder / "train.yaml").members == 3
    facts = Potential.load(folder).metadata
    assert [row["seed"] for row in facts["training"]["members"]] == [5, 6, 7] and facts["training"]["epochs"] == 9
    assert facts["errors"] == result.errors and result.errors.keys() == {"train", "valid", "test"}
    assert facts["training_data"]["files"]["test"] and facts["training_data"]["n_frames"] == 12
    card = (folder / "README.md").read_text()
    assert "3 SchNet, " in card and "mean of 3 networks" in card and "| 6 | 3 | 9 | " in card


def test_members_do_not_see_the_test_set(finished):
    for k in range(3):
        facts = Potential.load(finished[0] / "members" / str(k)).metadata
        assert facts["errors"].keys() == {"train", "valid"} and not facts["training_data"]["files"]["test"]


def test_stopped_in_one_and_resumed(finished, data, tmp_path):
    """Ctrl-C in the second of three: the first stays as it is, the second goes on, the third follows."""

    def interrupt(run):
        if (run.config.seed, run.step) == (6, 4):
            os.kill(os.getpid(), signal.SIGINT)

    settings = config(data, tmp_path / "stopped")
    result = train(settings, quiet=True, after_step=interrupt)
    assert result.stopped == "interrupted" and result.folder == tmp_path / "stopped" / "members" / "1"
    with pytest.raises(FileExistsError, match="unfinished run"):
        train(settings, quiet=True)
    before = (tmp_path / "stopped/members/0/model.safetensors").stat().st_mtime_ns
    again = train(settings, quiet=True, resume=True)
    assert (tmp_path / "stopped/members/0/model.safetensors").stat().st_mtime_ns == before
    assert same(tensors(tmp_path / "stopped"), tensors(finished[0])) and again.errors == finished[1].errors
    assert train(settings, quiet=True, resume=True).errors == again.errors  # finished: nothing more happens


def test_a_network_of_another_run_is_refused(data, tmp_path):
    def stop(run):
        if run.config.seed == 6:
            os.kill(os.getpid(), signal.SIGINT)

    train(config(data, tmp_path / "out"), quiet=True, after_step=stop)
    with pytest.raises(CheckpointError, match=r"members/0 is of another run: loss.energy was 30.0, now it is 10.0"):
        train(config(data, tmp_path / "out", loss={"energy": 10.0}), quiet=True, resume=True)


def test_time_is_shared(data, tmp_path):
    settings = load_config(config(data, tmp_path / "out", max_time="10min"))
    one, sets = member_of(settings, read_sets(settings), 2)
    assert one.max_seconds == pytest.approx(0.95 * 600 / 3) and one.seed == 7 and one.members == 1
    assert not sets.test and not one.data.test and one.data.train == settings.data.train


@pytest.mark.parametrize("members", [0, 33, 2.5])
def test_bad_numbers_of_members(data, tmp_path, members):
    with pytest.raises(ConfigError, match=rf"members: .*, got {members}"):
        train(config(data, tmp_path / "out", members=members), quiet=True)
