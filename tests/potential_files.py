"""A tiny potential file, and the check that something else is answered with the one clear error."""

import struct
from pathlib import Path

import pytest
import torch
import toy

from ase_equinn import potential_file
from ase_equinn.potential import Potential, PotentialFileError


def tiny(folder: Path) -> tuple[dict, dict, bytes]:
    """(header, tensors, bytes) of a pair model of one species."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        toy.register(patch)
        torch.manual_seed(0)
        path = Potential(toy.Pair([6], 3.0)).save(folder)
    return *potential_file.decode(path), path.read_bytes()


def refused(path: Path, data: bytes, reader=Potential.load) -> str:
    """The message of the one error that a file of `data` gives, which starts with the file's name."""
    path.write_bytes(data)
    return error_of(path, reader)


def error_of(path: Path, reader) -> str:
    try:  # some ten thousand times: pytest.raises is slower than the reader
        reader(path)
    except PotentialFileError as error:
        message = str(error)
    else:
        pytest.fail(f"{reader.__qualname__} accepted {path}, which is not intact")
    assert message.startswith(f"{path}: ") and len(message) < 3000 and len(message) > len(str(path)) + 10
    return message


def frame(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def sealed(header: dict, tensors: dict, data: bytes) -> bytes:
    """A file with exactly this header, its "sha256" included, and these tensor bytes."""
    layout = [(name, potential_file._DTYPE_NAMES[tensors[name].dtype], list(tensors[name].shape)) for name in tensors]
    return potential_file._prefix(header, layout) + data
