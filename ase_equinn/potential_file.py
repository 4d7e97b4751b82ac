"""The bytes of a potential file: a safetensors file with one canonical form, so that every changed bit is noticed.

    8 bytes    length of the header, little endian
    header     JSON: {"__metadata__": {"equinn": TEXT}, NAME: {"dtype", "shape", "data_offsets"}, ...}, then spaces
    data       the tensors, larger item sizes first, then by name, without gaps

TEXT is itself JSON (sorted keys, no spaces) with the fields of `HEADER_FIELDS`. Version 2 has the further field
"uncertainty" (see uncertainty.py); a potential without uncertainties is written in version 1, which older readers
know. Version 3 holds a committee, with the fields of `COMMITTEE_FIELDS` (see potential_committee.py). "sha256" is the
hash of the whole file as it would be without that field. A reader rebuilds the only header that the content allows and
compares it byte for byte, so spaces, key order, padding and trailing bytes count too. Reading executes nothing: JSON
and raw numbers.
"""

import hashlib
import json
import math
import os
import secrets
from pathlib import Path

import torch
from torch import Tensor

FORMAT_VERSION = 3
MAX_HEADER_BYTES = 20_000_000
MAX_FILE_BYTES = 4 * 1024**3
MAX_MODELS = 100
MAX_MEMBERS = 100
MAX_NUMBER = 118
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
NETWORK_DTYPES = {"float32": torch.float32, "float64": torch.float64}
UNITS = {"energy": "eV", "length": "A"}
HEADER_FIELDS = {
    "format_version": int,
    "code_version": str,
    "models": list,
    "species": list,
    "reference_energies": dict,
    "shift": dict,
    "isolated_energies": dict,
    "cutoff": float,
    "units": dict,
    "dtype": str,
    "metadata": dict,
    "sha256": str,
}
COMMITTEE_FIELDS = {"format_version": int, "code_version": str, "members": list, "spread": dict, "sha256": str}
FIELDS = {1: HEADER_FIELDS, 2: HEADER_FIELDS | {"uncertainty": dict}, 3: COMMITTEE_FIELDS}  # by version


class PotentialFileError(ValueError):
    """A potential cannot be read: the message names the file and what is wrong with it."""


def canonical_json(value) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII.

    Raises:
        ValueError, TypeError: `value` holds a nan, an infinity or something that JSON cannot express.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def encode(header: dict, tensors: dict[str, Tensor]) -> bytes:
    """The file that holds `header` (its "sha256" is added here) and `tensors`; the same input gives the same bytes.

    Raises:
        ValueError: a tensor of another dtype than `DTYPES`, a nan in the header, a header that is too long.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, a potential file holds {', '.join(DTYPES)}")
    layout = [(name, _DTYPE_NAMES[tensors[name].dtype], list(tensors[name].shape)) for name in _order(tensors)]
    data = b"".join(_tensor_bytes(tensors[name]) for name, _, _ in layout)
    bare = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(_prefix(bare, layout))
    digest.update(data)
    prefix = _prefix(bare | {"sha256": digest.hexdigest()}, layout)
    if len(prefix) - 8 > MAX_HEADER_BYTES:
        raise ValueError(f"the header would take {len(prefix)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return prefix + data


def decode(path: str | os.PathLike) -> tuple[dict, dict[str, Tensor]]:
    """The header and the tensors (CPU) of the file `path`, checked to the last bit.

    Raises:
        PotentialFileError: anything but an intact potential file of this format version.
    """
    try:
        prefix, data = _read(path)
        text, layout = _parse_prefix(prefix, len(data))
        header = _parse_header(text)
        layout.sort(key=lambda entry: (-DTYPES[entry[1]].itemsize, entry[0]))
        if _prefix(header, layout) != prefix:
            raise PotentialFileError("damaged: the header is not in canonical form")
        bare = {key: value for key, value in header.items() if key != "sha256"}
        digest = hashlib.sha256(_prefix(bare, layout))
        digest.update(data)
        if digest.hexdigest() != header["sha256"]:
            raise PotentialFileError(
                f"damaged: sha256 of the content is {digest.hexdigest()}, the file says {header['sha256'][:80]!r}"
            )
        _check_fields(header)
        return header, _tensors(data, layout)
    except PotentialFileError as error:
        raise PotentialFileError(f"{path}: {error}") from None
    except RecursionError:
        raise PotentialFileError(f"{path}: not a potential file: the header is nested too deeply") from None
    except OSError as error:
        raise PotentialFileError(f"{path}: {error.strerror}") from error
    except (ValueError, MemoryError) as error:
        raise PotentialFileError(f"{path}: damaged: {error}") from error


def write_atomic(path: Path, content: bytes) -> None:
    """`path` holds its old content or all of the new: a temporary file beside it is flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _order(tensors: dict[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _tensor_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).numpy().tobytes()


def _prefix(header: dict, layout: list[tuple[str, str, list[int]]]) -> bytes:
    """Length and padded header of a file: a function of the content alone."""
    entries, offset = {"__metadata__": {"equinn": canonical_json(header)}}, 0
    for name, dtype, shape in layout:
        end = offset + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(path) -> tuple[bytes, bytearray]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise PotentialFileError(f"not a potential file: {len(start)} bytes long")
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER_BYTES:
            raise PotentialFileError(
                f"not a potential file: its first 8 bytes announce a header of {length} bytes, at most "
                f"{MAX_HEADER_BYTES} are allowed"
            )
        if size > MAX_FILE_BYTES:
            raise PotentialFileError(f"{size} bytes long, at most {MAX_FILE_BYTES} are allowed")
        text = file.read(length)
        if len(text) < length:
            raise PotentialFileError(f"truncated: the header has {len(text)} of {length} bytes")
        data = bytearray(size - 8 - length)
        if file.readinto(data) != len(data):
            raise PotentialFileError("truncated while it was read")
    return start + text, data


def _object(pairs):
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise PotentialFileError(f"the header has the key {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return dict(pairs)


def _constant(name):
    raise PotentialFileError(f"the header holds the number {name}")


def _parse_json(text: str | bytes, what: str) -> dict:
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PotentialFileError(f"not a potential file: {what} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise PotentialFileError(f"not a potential file: {what} is a {type(value).__name__}, not an object")
    return value


def _parse_prefix(prefix: bytes, n_bytes: int) -> tuple[str, list[tuple[str, str, list[int]]]]:
    """The text of our header, and (name, dtype, shape) of the tensors, which must fill `n_bytes`, in the file's order."""
    entries = _parse_json(prefix[8:], "the header")
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("equinn"), str):
        raise PotentialFileError("not a potential file: the header has no 'equinn' entry in '__metadata__'")
    layout, total = [], 0
    for name, entry in entries.items():
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise PotentialFileError(f"tensor {name!r} has dtype {dtype!r}, known are {', '.join(DTYPES)}")
        if not isinstance(shape, list) or len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
            raise PotentialFileError(f"tensor {name!r} has the shape {str(shape)[:200]}")
        if math.prod(max(n, 1) for n in shape) > MAX_FILE_BYTES:
            raise PotentialFileError(f"tensor {name!r} has the shape {str(shape)[:200]}")
        total += math.prod(shape) * DTYPES[dtype].itemsize
        layout.append((name, dtype, shape))
    if total != n_bytes:
        problem = "truncated" if total > n_bytes else "damaged"
        raise PotentialFileError(f"{problem}: the tensors take {total} bytes, the file holds {n_bytes}")
    return metadata["equinn"], layout


def _parse_header(text: str) -> dict:
    header = _parse_json(text, "the 'equinn' entry")
    version = header.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise PotentialFileError(
            f"written in format version {version}, this ase_equinn reads up to {FORMAT_VERSION}: install a newer one"
        )
    if type(version) is not int or version < 1:
        raise PotentialFileError(f"format version {version!r} is not known")
    _check_types(header, FIELDS[version])
    return header


def _check_types(header: dict, fields: dict[str, type]) -> None:
    if set(header) != set(fields):
        missing, extra = sorted(set(fields) - set(header)), sorted(set(header) - set(fields))
        raise PotentialFileError(f"the header lacks the keys {missing} and has the unknown keys {str(extra)[:500]}")
    for key, kind in fields.items():
        if type(header[key]) is not kind:
            raise PotentialFileError(f"the header's {key!r} is {str(header[key])[:200]!r}, not a {kind.__name__}")


def _check_fields(header: dict) -> None:
    """Values of the header, beyond their types, that building a potential or a committee relies on."""
    if "members" in header:
        return _check_members(header["members"])
    species = header["species"]
    if not all(type(z) is int and 1 <= z <= MAX_NUMBER for z in species) or sorted(set(species)) != species:
        raise PotentialFileError(f"species {str(species)[:200]} are not sorted, distinct atomic numbers")
    for key in ("reference_energies", "shift", "isolated_energies"):
        table = header[key]
        if set(table) != {str(z) for z in species} or not all(type(e) is float for e in table.values()):
            raise PotentialFileError(f"{key} {str(table)[:200]} are not one number for each species of {species}")
    if header["units"] != UNITS:
        raise PotentialFileError(f"units {str(header['units'])[:200]}, expected {UNITS}")
    if header["dtype"] not in NETWORK_DTYPES:
        raise PotentialFileError(f"dtype {header['dtype'][:80]!r}, known are {', '.join(NETWORK_DTYPES)}")
    if not 1 <= len(header["models"]) <= MAX_MODELS:
        raise PotentialFileError(f"{len(header['models'])} models, allowed are 1 to {MAX_MODELS}")
    for model in header["models"]:
        if not isinstance(model, dict) or set(model) != {"architecture", "hyperparameters", "scale"}:
            raise PotentialFileError(f"{str(model)[:200]} does not describe a model")
        kinds = (type(model["architecture"]), type(model["hyperparameters"]), type(model["scale"]))
        if kinds != (str, dict, float):
            raise PotentialFileError(f"{str(model)[:200]} does not describe a model")


def _check_members(members: list) -> None:
    """Each must be the header of a potential, without a hash of its own."""
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise PotentialFileError(f"{len(members)} members, allowed are 1 to {MAX_MEMBERS}")
    for k, member in enumerate(members):
        version = member.get("format_version") if isinstance(member, dict) else None
        if type(version) is not int or version not in (1, 2):
            raise PotentialFileError(f"member {k} is no potential: {str(member)[:200]}")
        try:
            _check_types(member, {key: kind for key, kind in FIELDS[version].items() if key != "sha256"})
            _check_fields(member)
        except PotentialFileError as error:
            raise PotentialFileError(f"member {k}: {error}") from None


def _tensors(data: bytearray, layout: list[tuple[str, str, list[int]]]) -> dict[str, Tensor]:
    tensors, offset = {}, 0
    for name, dtype, shape in layout:
        count = math.prod(shape)
        if dtype == "BOOL" and count and max(data[offset : offset + count]) > 1:
            raise PotentialFileError(f"tensor {name!r} holds a byte that is neither false nor true")
        if count:
            flat = torch.frombuffer(data, dtype=DTYPES[dtype], count=count, offset=offset).clone()
        else:
            flat = torch.empty(0, dtype=DTYPES[dtype])
        tensors[name] = flat.reshape(shape)
        offset += count * DTYPES[dtype].itemsize
    return tensors
