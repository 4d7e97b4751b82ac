"""Checkpoints of a training run: a safetensors file, so that reading one executes nothing.

Tensors hold weights, averaged weights, best weights, optimizer moments and the random state, one JSON entry the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .potential_file import write_atomic

FORMAT = 1
_KEY = "equinn_checkpoint"


class Checkpoint(NamedTuple):
    """`tensors` by name; `state` is anything that JSON holds."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or belongs to another run; the message names the file."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces `path` in one stroke."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    text = json.dumps({"format": FORMAT, "state": checkpoint.state})
    write_atomic(path, save(tensors, {_KEY: text}))


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint as it was saved, on the CPU.

    Raises:
        CheckpointError: missing, damaged or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {str(path)!r} to resume from")
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        version, state = content["format"], content["state"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {type(error).__name__}: {error}") from error
    if version != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {version}, this version reads {FORMAT}")
    return Checkpoint(tensors, state)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer with one parameter group, by "optimizer.<parameter>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{k}.{name}": torch.as_tensor(value) for k, entry in state.items() for name, value in entry.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            index, name = rest.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
