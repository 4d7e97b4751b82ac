"""Tensors of a file of torch.save: views of storages, checked to lie inside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Storage:
    values: Tensor  # one-dimensional


def read_values(data: bytes, dtype: torch.dtype) -> Tensor:
    """The numbers of a storage, one-dimensional."""
    if len(data) % dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are no whole number of {dtype}")
    if dtype == torch.bool and data and max(data) > 1:
        raise ValueError("a byte of a boolean tensor is neither false nor true")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """The view of a storage, checked to lie inside it."""
    if not isinstance(storage, Storage) or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without storage, size or stride")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 16 or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise ValueError(f"a tensor of size {str(size)[:200]} and stride {str(stride)[:200]}")
    count, last = 1, offset
    for n, step in zip(size, stride, strict=True):
        count, last = count * n, last + (n - 1) * step
    available = storage.values.numel()
    if count and (last >= available or count > available):
        raise ValueError(f"a tensor of size {size} and stride {stride} in a storage of {available} elements")
    return torch.as_strided(storage.values, size, stride, offset) if count else storage.values.new_empty(size)
