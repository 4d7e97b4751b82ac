"""Torch's modes, which belong to the caller and must not reach a potential."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def own_modes(device: torch.device) -> contextlib.AbstractContextManager:
    """Neither inference mode nor autocast of the caller reaches the potential, whose weights need no gradient."""
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type):
        return _outside(device)
    return contextlib.nullcontext()  # entering any of torch's modes takes several microseconds


@contextlib.contextmanager
def _outside(device: torch.device) -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
