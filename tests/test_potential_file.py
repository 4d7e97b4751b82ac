"""Potential files: bitwise round trips and atomic writes; damage and malice are in test_potential_damage.py."""

import json
import os

import pytest
import safetensors
import torch
import toy
from potential_files import tiny

from ase_equinn import __version__
from ase_equinn.derivatives import energy_only
from ase_equinn.potential import Potential, read_header
from ase_equinn.potential_file import HEADER_FIELDS, decode, encode

METADATA = {
    "level_of_theory": "PBE, \u00e9nergie",
    "training_data": {"sha256": "00", "distance": [1.9, 5.0]},
    "errors": {"energy_mae": 1.5, "stress_mae": None},
}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    toy.register(monkeypatch)


def make(dtype=torch.float32) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        models = [toy.Embedded([6, 14], 4.0).to(dtype), toy.Pair([6, 14], 3.0, r0=0.1 + 0.2).to(dtype)]
    return Potential(models, reference_energies={6: -37.1, 14: -1 / 3}, scale=[0.7, 1.0], shift=1e-3, metadata=METADATA)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("tiny"))


# ---- round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_and_loaded_gives_the_same_bits(tmp_path, dtype):
    potential = make(dtype)
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    path = potential.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "model.safetensors"
    for source in (path, path.parent, str(path), str(path.parent)):
        loaded = Potential.load(source)
        assert loaded.dtype == dtype and not loaded.training
        assert torch.equal(energy_only(loaded, graphs, positions), energy_only(potential, graphs, positions))
        for name in ("species", "cutoffs", "scale", "shift", "reference_energies", "metadata"):
            assert getattr(loaded, name) == getattr(potential, name), name
    assert loaded.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_dtype_is_chosen_at_load(tmp_path):
    path = make().save(tmp_path)
    for dtype in ("float64", torch.float64):
        loaded = Potential.load(path, dtype=dtype)
        assert loaded.dtype == torch.float64 == loaded.models[0].weight.dtype
    assert torch.equal(loaded.models[0].weight.float(), make().models[0].weight)
    for dtype in ("half", torch.float16, "double"):
        with pytest.raises(ValueError, match="float32, float64, received"):
            Potential.load(path, dtype=dtype)


def test_loading_leaves_torchs_global_state_alone(tmp_path):
    path, before = make(torch.float64).save(tmp_path), torch.get_rng_state()
    Potential.load(path)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_default_dtype() == torch.float32


def test_header_says_what_the_file_holds(tmp_path):
    potential = make()
    header = read_header(potential.save(tmp_path))
    assert set(header) == set(HEADER_FIELDS)
    assert header["metadata"] == METADATA and header["code_version"] == __version__
    assert header["units"] == {"energy": "eV", "length": "A"} and header["dtype"] == "float32"
    assert header["species"] == [6, 14] and header["cutoff"] == 4.0
    assert header["reference_energies"] == {"6": -37.1, "14": -1 / 3} and header["shift"] == {"6": 1e-3, "14": 1e-3}
    assert header["isolated_energies"] == {str(z): potential.isolated_energy(z) for z in (6, 14)}
    assert header["models"][1] == {
        "architecture": "toy_pair",
        "scale": 1.0,
        "hyperparameters": {"species": [6, 14], "cutoff": 3.0, "r0": 0.1 + 0.2},
    }


def test_the_safetensors_library_reads_the_file(tmp_path):
    potential = make()
    with safetensors.safe_open(str(potential.save(tmp_path)), "pt") as file:
        assert set(file.metadata()) == {"equinn"} and json.loads(file.metadata()["equinn"])["species"] == [6, 14]
        state = potential.models.state_dict()
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in state.items())


def test_every_dtype_and_shape_survives(tmp_path, content):
    header, _, _ = content
    tensors = {
        "a": torch.tensor([True, False, True]), "b": torch.randn(2, 3, 4), "c": torch.tensor(1.5, dtype=torch.float64),
        "d": torch.empty(0, 7), "e": torch.tensor([[-(2**62)]]), "f": torch.randn(5, 4).T,
        "g": torch.arange(3, dtype=torch.int32), "h \u00e9\"\n": torch.tensor([float("nan"), -0.0]),
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode(header, tensors))
    _, received = decode(path)
    assert set(received) == set(tensors)
    for name, tensor in tensors.items():
        assert received[name].dtype == tensor.dtype and received[name].shape == tensor.shape
        assert torch.equal(received[name].nan_to_num(7.0), tensor.nan_to_num(7.0))
    with pytest.raises(ValueError, match="'x' is torch.float16"):
        encode(header, {"x": torch.zeros(1, dtype=torch.float16)})


# ---- writing


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = make().save(tmp_path)
    before = path.read_bytes()
    broken = make()
    with torch.no_grad():
        broken.models[1].weight[0] = float("inf")
    with pytest.raises(ValueError, match=r"'1.weight' holds numbers that are not finite"):
        broken.save(tmp_path)
    for metadata, word in [({"x": float("nan")}, "nan"), ({"x": object()}, "object"), ({1: 2, "a": 3}, "instances of")]:
        other = make()
        other.metadata = metadata
        with pytest.raises(ValueError, match=rf"metadata cannot be written as JSON.*{word}"):
            other.save(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left"):
                make(torch.float64).save(tmp_path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_what_could_not_be_loaded_is_not_saved(tmp_path, monkeypatch):
    class Stranger(toy.Pair):
        pass

    with pytest.raises(ValueError, match="Stranger has no name in a potential file"):
        Potential(Stranger([6], 3.0)).save(tmp_path)
    with pytest.raises(ValueError, match=r"float32 or float64 models, not torch.float16"):
        Potential(toy.Pair([6], 3.0).half()).save(tmp_path)
    pair = toy.Pair([6], 3.0)
    pair.hyperparameters["colour"] = "red"
    with pytest.raises(ValueError, match="toy_pair has no hyper-parameter 'colour', it has species, cutoff, r0"):
        Potential(pair).save(tmp_path)
    assert not list(tmp_path.iterdir())
