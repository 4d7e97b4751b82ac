"""Hyper-parameters are input: absurd ones are refused in a moment, before they take memory."""

import resource
import time

import pytest
import torch
import toy
from torch import nn

from ase_equinn.models.nequip import NequIP
from ase_equinn.models.schnet import SchNet
from ase_equinn.potential import ARCHITECTURES, Potential, PotentialFileError
from ase_equinn.potential_build import _AllocationLimit, build_model, check_hyperparameters
from ase_equinn.potential_file import decode, encode

HOSTILE = [
    (SchNet, {"n_channels": 10**12}, "holds 1000000000000, at most 10000"),
    (SchNet, {"n_channels": 10_000}, "tensor elements, far more than the file holds"),
    (SchNet, {"n_layers": 10_000}, "tensor elements, far more"),
    (NequIP, {"irreps_hidden": "1000000000x0e"}, "tensor elements, far more"),
    (NequIP, {"irreps_hidden": "64x0e+" * 10**4 + "64x0e"}, "has length 60005, at most 10000"),
    (NequIP, {"radial_mlp": [10**4, 10**4, 10**4]}, "tensor elements, far more"),
    (NequIP, {"radial_mlp": [1] * 10**6}, "has length 1000000"),
    (NequIP, {"radial_mlp": {"a": [[[10**9]]]}}, "holds 1000000000"),
    (NequIP, {"lmax": 10_000}, "lmax must be"),
    (NequIP, {"n_layers": 10_000}, "tensor elements, far more"),
]


@pytest.mark.parametrize(("model_class", "change", "message"), HOSTILE, ids=lambda x: str(x)[:40])
def test_absurd_sizes_are_refused_before_they_take_memory(tmp_path, model_class, change, message):
    potential = Potential(model_class([14], 4.0))
    header, tensors = decode(potential.save(tmp_path))
    header["models"][0]["hyperparameters"] |= change
    (tmp_path / "hostile").write_bytes(encode(header, tensors))
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(PotentialFileError, match=message):
        Potential.load(tmp_path / "hostile")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 10**6  # kB: 1e8 elements are 4e5
    assert time.process_time() - start < 30


@pytest.mark.parametrize("name", [name for name, (module, _) in ARCHITECTURES.items() if ".models." in module])
def test_default_models_are_far_from_the_limit(tmp_path, name):
    """Sizes of real potentials pass: the largest published ones have 128 to 512 channels."""
    model_class = getattr(__import__(ARCHITECTURES[name][0], fromlist=["x"]), ARCHITECTURES[name][1])
    model = model_class([1, 6, 8, 14], 5.0)
    built = build_model(name, model_class, model.hyperparameters, 0)
    assert built.hyperparameters == model.hyperparameters


class Hungry(nn.Module):
    def __init__(self, how, size):
        super().__init__()
        {
            "empty": lambda: torch.empty(size, size),
            "tuple": lambda: torch.zeros((size, size)),
            "named": lambda: torch.rand(size=(size, size)),
            "full": lambda: torch.full((size, size), 1e-3),
            "arange": lambda: torch.arange(size**2),
            "step": lambda: torch.arange(0.0, 1.0, 1 / size**2),
            "eye": lambda: torch.eye(size),
            "linear": lambda: nn.Linear(size, size),
            "parameter": lambda: nn.Parameter(torch.empty(size, size)),
            "new": lambda: torch.zeros(1).new_zeros(size, size),
            "repeat": lambda: torch.zeros(1).repeat(size, size),
            "calls": lambda: [torch.zeros(1) for _ in range(size)],
        }[how]()


@pytest.mark.parametrize(
    "how", ["empty", "tuple", "named", "full", "arange", "step", "eye", "linear", "parameter", "new", "repeat", "calls"]
)
def test_every_way_to_ask_for_memory_is_counted(how):
    with pytest.raises(ValueError, match="more than 1000000 tensor elements"), _AllocationLimit(10**6):
        Hungry(how, 10**5)  # 1e10 elements: 40 GB
    with _AllocationLimit(10**5):
        Hungry(how, 10)


def test_building_keeps_the_random_state():
    before = torch.get_rng_state()
    build_model("toy", toy.Pair, {"species": [6], "cutoff": 3.0}, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_known_hyperparameters_of_sane_size_pass():
    check_hyperparameters("toy", toy.Pair, {"species": list(range(1, 119)), "cutoff": 1e9, "r0": -1.5})
    for bad, message in [
        ({"r1": 0}, "toy has no hyper-parameter 'r1', it has species, cutoff, r0"),
        ({"r0": -(10**6)}, "toy's r0 holds -1000000"),
        ({"r0": {"a": {"b": 10**6}}}, "toy's r0 holds 1000000"),
        ({"r0": "x" * 10**5}, "toy's r0 has length 100000"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_hyperparameters("toy", toy.Pair, bad)
