"""Reads a file of torch.save as data: tensors, plain containers, and every other object as an inert bag of attributes.

Neither mace-torch nor e3nn is needed, and nothing in the file is executed: a malicious one can at most be refused.
"""

from __future__ import annotations

import os
import zipfile
from typing import Any

from .mace_objects import Machine

MAX_FILE_BYTES = 4 * 1024**3
MAX_PICKLE_BYTES = 256 * 1024**2
MAX_ENTRIES = 100_000  # storages in the file


def read_torch_file(path: str | os.PathLike) -> Any:
    """The object that torch.save wrote, as tensors (CPU), plain containers and `Bag`s; nothing in the file is executed.

    Args:
        path: a file in torch's zip format (torch >= 1.6).

    Returns:
        For a saved module its Bag; tuples, lists, dicts (OrderedDict too), numbers, strings and None are themselves, sets
        are lists, parameters are tensors, classes and functions are `Global`s.

    Raises:
        ValueError: anything that is not such a file, or not an intact one; the message names the file.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
            if not zipfile.is_zipfile(file):
                raise ValueError("not a zip file as torch.save has written since torch 1.6")
            with zipfile.ZipFile(file) as archive:
                records = _Records(archive)
                return Machine(records.storage).run(records.read("data.pkl", MAX_PICKLE_BYTES))
    except OSError:
        raise
    except Exception as error:  # whatever a hostile file does to zipfile or the machine is the file's fault
        raise ValueError(
            f"{os.fspath(path)}: no model can be read: {type(error).__name__}: {str(error)[:500]}"
        ) from None


class _Records:
    """The entries of the archive: each is read once, and together they are no more than the archive."""

    def __init__(self, archive: zipfile.ZipFile):
        entries = archive.infolist()
        roots = [entry.filename[: -len("data.pkl")] for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(entries) > MAX_ENTRIES:
            raise ValueError(f"{len(entries)} entries, at most {MAX_ENTRIES} are allowed")
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} entries end in /data.pkl, expected one")
        self.archive, self.root, self.left = archive, roots[0], MAX_FILE_BYTES
        self.entries = {entry.filename: entry for entry in entries}
        if self.root + "constants.pkl" in self.entries:
            raise ValueError("a TorchScript archive (a compiled model); give the .model file that it was compiled from")
        order = self.read("byteorder", 100) if self.root + "byteorder" in self.entries else b"little"
        if order != b"little":
            raise ValueError(f"byte order {order[:20]!r}, only little endian is read")

    def read(self, name: str, limit: int) -> bytes:
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise ValueError(f"there is no entry {name[:80]!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > min(limit, self.left):
            raise ValueError(f"entry {name[:80]!r} is compressed, or larger than expected ({entry.file_size} bytes)")
        self.left -= entry.file_size
        return self.archive.read(entry)

    def storage(self, key: str) -> bytes:
        return self.read(f"data/{key}", MAX_FILE_BYTES)
