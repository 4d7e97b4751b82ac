"""Errors against numbers worked out by hand."""

import numpy as np
import pytest
from ase import Atoms
from rich.console import Console

from ase_equinn.data import Frame
from ase_equinn.metrics import Prediction, by_kind, describe, errors
from ase_equinn.train_output import error_table


def frame(symbols, energy=None, forces=None, stress=None):
    n = len(Atoms(symbols))
    atoms = Atoms(symbols, positions=np.arange(3.0 * n).reshape(n, 3), cell=np.eye(3) * 5, pbc=True)
    return Frame(atoms, energy, forces, stress)


def test_by_hand():
    """Two atoms off by 0.2 eV, one by -0.3 eV; forces of H off by 0.1, of O by -0.4; one shear component by 0.006."""
    shear = np.zeros((3, 3))
    shear[0, 1] = shear[1, 0] = 0.006
    frames = [
        frame("HO", 1.0, np.zeros((2, 3)), np.zeros((3, 3))),
        frame("O", 2.0),
    ]
    predictions = [
        Prediction(1.2, np.array([[0.1] * 3, [-0.4] * 3]), shear),
        Prediction(1.7, np.full((1, 3), 99.0), np.full((3, 3), 99.0)),
    ]
    found = errors(frames, predictions)
    assert found["n_frames"] == 2
    expected = {
        "energy_bias": (100 - 300) / 2,
        "energy_mae": (100 + 300) / 2,
        "energy_rmse": np.sqrt((100**2 + 300**2) / 2),
        "energy_total_mae": 250,
        "energy_total_rmse": np.sqrt((200**2 + 300**2) / 2),
        "force_mae": 250,
        "force_rmse": np.sqrt((100**2 + 400**2) / 2),
        "stress_mae": 1.0,  # one of six components is off by 6 meV/A^3
        "stress_rmse": 6 / np.sqrt(6),
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(value), key
    assert found["per_species"] == {
        "H": {"n_atoms": 1, "force_mae": pytest.approx(100), "force_rmse": pytest.approx(100)},
        "O": {"n_atoms": 1, "force_mae": pytest.approx(400), "force_rmse": pytest.approx(400)},
    }
    assert describe(found) == "E 200 meV/atom, F 250 meV/A, S 1 meV/A^3 (MAE)"


def test_no_labels_give_none():
    found = errors([frame("H")], [Prediction(1.0, np.ones((1, 3)), None)])
    assert found["n_frames"] == 1 and found["per_species"] == {}
    assert {key for key, value in found.items() if value is None} == {"energy_bias"} | {
        f"{name}_{kind}" for name in ("energy", "energy_total", "force", "stress") for kind in ("mae", "rmse")
    }


def test_a_label_without_prediction_is_skipped():
    found = errors([frame("H", stress=np.eye(3))], [Prediction(1.0, np.ones((1, 3)), None)])
    assert found["stress_mae"] is None


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 frames but 0 predictions"):
        errors([frame("H")], [])


def test_errors_by_kind_of_structure():
    frames = [frame("H", 1.0)._replace(config_type=kind) for kind in ("bulk", "surface", "surface")]
    predictions = [Prediction(1.0 + error, np.zeros((1, 3)), None) for error in (0.1, -0.2, -0.4)]
    found = errors(frames, predictions)
    kinds = by_kind(found)
    assert list(kinds) == ["bulk", "surface"] and [one["n_frames"] for one in kinds.values()] == [1, 2]
    assert kinds["surface"]["energy_bias"] == pytest.approx(-300)
    assert kinds["surface"]["energy_rmse"] == pytest.approx(1000 * np.sqrt((0.2**2 + 0.4**2) / 2))
    assert kinds["bulk"]["energy_bias"] == pytest.approx(100)
    assert by_kind(errors(frames[1:], predictions[1:])) == {}  # one kind: what the whole says
    many = [one._replace(config_type=str(i)) for i, one in enumerate(frames * 7)]
    found = errors(many, predictions * 7)
    assert len(found["per_config_type"]) == 21 and by_kind(found) == {}


def test_a_kind_that_looks_like_markup_is_shown_as_it_is():
    frames = [frame("H", 1.0)._replace(config_type=kind) for kind in ("[/bulk]", "surface")]
    found = errors(frames, [Prediction(1.1, np.zeros((1, 3)), None)] * 2)
    console = Console(width=200)
    with console.capture() as text:
        console.print(error_table({"train": found}))
    assert "[/bulk]" in text.get()
