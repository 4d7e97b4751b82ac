"""Checkpoints give back every bit, and damage is an error with the file's name."""

import pytest
import torch

from ase_equinn.train_checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)


def test_every_bit_comes_back(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(0.1, dtype=torch.float64), "rng": torch.get_rng_state()}
    state = {"x": 0.1 + 0.2, "rows": [{"e": None, "n": 3}], "best_loss": float("inf")}
    save_checkpoint(tmp_path / "c", Checkpoint(tensors, state))
    found = load_checkpoint(tmp_path / "c")
    assert found.state == state
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[k], v) and found.tensors[k].dtype == v.dtype for k, v in tensors.items())


def test_optimizer_goes_on_as_if_nothing_had_happened():
    def steps(parameter, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            (parameter.square().sum() + parameter.sin().sum()).backward()
            optimizer.step()

    a = torch.nn.Parameter(torch.linspace(0, 1, 5))
    one = torch.optim.AdamW([a], lr=0.1, amsgrad=True)
    steps(a, one, 3)
    b = torch.nn.Parameter(a.detach().clone())
    two = torch.optim.AdamW([b], lr=0.1, amsgrad=True)
    load_optimizer(two, {k: v.clone() for k, v in optimizer_tensors(one).items()})
    steps(a, one, 3)
    steps(b, two, 3)
    assert torch.equal(a, b)


def test_damage_is_named(tmp_path):
    path = tmp_path / "last.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint .*last.safetensors"):
        load_checkpoint(path)
    save_checkpoint(path, Checkpoint({"a": torch.zeros(50)}, {}))
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:10], b"", b"\x80\x04not safetensors"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot read the checkpoint .*last.safetensors"):
            load_checkpoint(path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]
