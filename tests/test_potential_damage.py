"""Everything that is not an intact potential file gives one clear error that names the file and the fault."""

import hashlib
import json
import os
import pickle
from struct import pack

import pytest
import torch
import toy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from potential_files import error_of, frame, refused, sealed, tiny

from ase_equinn import potential_file
from ase_equinn.potential import Potential, PotentialFileError
from ase_equinn.potential_file import HEADER_FIELDS, canonical_json, decode, encode


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    toy.register(monkeypatch)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("tiny"))


# ---- damage


def test_every_flipped_bit_is_an_error(tmp_path, content):
    data, path = content[2], tmp_path / "a.safetensors"
    path.write_bytes(data)
    with open(path, "r+b") as file:
        for k in range(8 * len(data)):
            os.pwrite(file.fileno(), bytes([data[k // 8] ^ 1 << k % 8]), k // 8)
            error_of(path, decode)
            os.pwrite(file.fileno(), data[k // 8 : k // 8 + 1], k // 8)
    assert path.read_bytes() == data


def test_every_second_changed_byte_of_a_larger_file_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    potential = Potential([toy.Embedded(range(1, 9), 4.0), toy.Pair(range(1, 9), 3.0)])
    original = potential.double().save(path).read_bytes()
    generator = torch.Generator().manual_seed(0)
    changes = torch.randint(1, 256, (len(original),), generator=generator).tolist()
    for k in range(0, len(original), 2):
        refused(path, original[:k] + bytes([original[k] ^ changes[k]]) + original[k + 1 :])


def test_every_truncation_and_every_extension_is_an_error(tmp_path, content):
    data, path = content[2], tmp_path / "a.safetensors"
    for length in range(len(data)):
        refused(path, data[:length], decode)
    for extra in (b"\0", b" ", data):
        assert "damaged" in refused(path, data + extra)


def test_a_pickle_under_our_name_is_refused_and_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": Bomb()}, tmp_path / "zip")
    torch.save({"model": Bomb()}, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    for data in (
        pickle.dumps(Bomb()),
        (tmp_path / "zip").read_bytes(),
        (tmp_path / "legacy").read_bytes(),
        b"",
        b"\x80\x04.",
    ):
        assert "not a potential file" in refused(tmp_path / "model.safetensors", data)
    assert not (tmp_path / "executed").exists()


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    from safetensors.torch import save

    assert "no 'equinn' entry" in refused(tmp_path / "a", save({"x": torch.zeros(3)}))
    assert "no 'equinn' entry" in refused(tmp_path / "a", save({"x": torch.zeros(3)}, {"format": "pt"}))
    assert "not JSON" in refused(tmp_path / "a", save({"x": torch.zeros(3)}, {"equinn": "pt"}))


# ---- hostile content with a right hash


CHANGES = [
    ({"format_version": 2}, "lacks the keys ['uncertainty']"),
    ({"format_version": 4}, "format version 4, this ase_equinn reads up to 3: install a newer one"),
    ({"format_version": 10**30}, "install a newer one"),
    ({"format_version": 0}, "format version 0 is not known"),
    ({"format_version": True}, "format version True is not known"),
    ({"format_version": None}, "format version None"),
    ({"species": []}, "one number for each species"),
    ({"species": [0]}, "atomic numbers"),
    ({"species": [6, 6]}, "atomic numbers"),
    ({"species": [6] * 10**6}, "atomic numbers"),
    ({"species": [6.0]}, "atomic numbers"),
    ({"species": [119]}, "atomic numbers"),
    ({"species": 6}, "'species' is '6', not a list"),
    ({"reference_energies": {"6": 0}}, "reference_energies"),
    ({"reference_energies": {"6": "0"}}, "reference_energies"),
    ({"reference_energies": {"06": 0.0}}, "reference_energies"),
    ({"shift": {"6": 0.0, "14": 0.0}}, "shift"),
    ({"isolated_energies": {"6": 17.0}}, "an isolated atom of element 6 has the energy"),
    ({"cutoff": 3.5}, "says species [6] and cutoff 3.5, its models say [6] and 3.0"),
    ({"units": {"energy": "kcal/mol", "length": "A"}}, "kcal/mol"),
    ({"dtype": "float16"}, "dtype 'float16', known are float32, float64"),
    ({"dtype": "float64"}, "'0.bias' is torch.float32 (1,), the hyper-parameters want torch.float64"),
    ({"models": []}, "0 models"),
    ({"models": [{}] * 101}, "101 models"),
    ({"models": [3]}, "3 does not describe a model"),
    ({"models": [{"architecture": "toy_pair"}]}, "does not describe a model"),
    ({"metadata": None}, "'metadata' is 'None', not a dict"),
    ({"extra": 1}, "lacks the keys [] and has the unknown keys ['extra']"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=lambda x: str(x)[:40])
def test_hostile_headers(tmp_path, content, change, message):
    header, tensors, _ = content
    assert message in refused(tmp_path / "a.safetensors", encode(header | change, tensors))


MODEL_CHANGES = [
    ({"architecture": "os.system"}, "architecture 'os.system' is not known, this version of ase_equinn has schnet"),
    ({"architecture": ["toy_pair"]}, "does not describe a model"),
    ({"scale": 1}, "does not describe a model"),
    ({"hyperparameters": []}, "does not describe a model"),
    (
        {"hyperparameters": {"species": [6], "cutoff": 3.0, "cutof": 1}},
        "no hyper-parameter 'cutof', it has species, cutoff",
    ),
    ({"hyperparameters": {"species": [6], "cutoff": 3.0, "self": 1}}, "no hyper-parameter 'self'"),
    ({"hyperparameters": {"species": [6]}}, "missing 1 required positional argument: 'cutoff'"),
    ({"hyperparameters": {"species": "C", "cutoff": 3.0}}, "toy_pair cannot be built from"),
    ({"hyperparameters": {"species": [6], "cutoff": []}}, "toy_pair cannot be built from"),
    (
        {"hyperparameters": {"species": [6, 14], "cutoff": 3.0}},
        "'0.bias' is torch.float32 (1,), the hyper-parameters want",
    ),
    ({"hyperparameters": {"species": [6], "cutoff": 3.0, "r0": "x"}}, "its content is no potential: TypeError"),
    ({"hyperparameters": {"species": [14], "cutoff": 3.0}}, "its content is no potential: ValueError"),
    ({"hyperparameters": {"species": [6], "cutoff": -3.0}}, "its content is no potential: ValueError"),
    ({"architecture": "toy_embedded"}, "no hyper-parameter 'r0'"),
]


@pytest.mark.parametrize(("change", "message"), MODEL_CHANGES, ids=lambda x: str(x)[:40])
def test_hostile_models(tmp_path, content, change, message):
    header, tensors, _ = content
    data = encode(header | {"models": [header["models"][0] | change]}, tensors)
    assert message in refused(tmp_path / "a.safetensors", data)


def test_renamed_missing_and_foreign_tensors(tmp_path, content):
    header, tensors, _ = content
    path = tmp_path / "a.safetensors"
    for name in tensors:
        rest = {key: value for key, value in tensors.items() if key != name}
        assert f"missing: ['{name}']" in refused(path, encode(header, rest))
        assert f"missing: ['{name}']; that no model has: ['other']" in refused(
            path, encode(header, rest | {"other": tensors[name]})
        )
        assert f"'{name}' is torch.float64" in refused(path, encode(header, tensors | {name: tensors[name].double()}))
        assert f"'{name}' is" in refused(path, encode(header, tensors | {name: torch.zeros(4, 4)}))
    assert "that no model has: ['more']" in refused(path, encode(header, tensors | {"more": torch.zeros(1)}))


def test_renamed_header_keys(tmp_path, content):
    header, tensors, _ = content
    for key in set(HEADER_FIELDS) - {"sha256", "format_version"}:
        renamed = {key + "x" if k == key else k: v for k, v in header.items()}
        assert f"lacks the keys ['{key}'] and has the unknown keys ['{key}x']" in refused(
            tmp_path / "a.safetensors", encode(renamed, tensors)
        )


@pytest.mark.parametrize("sha", ["0" * 64, "", "A" * 10**5])
def test_a_wrong_hash(tmp_path, content, sha):
    header, tensors, data = content
    raw = data[-sum(tensor.nbytes for tensor in tensors.values()) :]
    assert sealed(header, tensors, raw) == data
    message = refused(tmp_path / "a.safetensors", sealed(header | {"sha256": sha}, tensors, raw))
    assert f"damaged: sha256 of the content is {header['sha256']}, the file says {sha[:80]!r}" in message


RAW = [
    (b"", "0 bytes long"),
    (pack("<Q", 2**63) + b"{}", "announce a header of 9223372036854775808 bytes"),
    (pack("<Q", 100_000_001) + b"{}", "announce a header of 100000001 bytes"),
    (pack("<Q", 10**6) + b"{}", "truncated: the header has 2 of 1000000 bytes"),
    (frame(b""), "not JSON"),
    (frame(b"\xff\xfe{}"), "not JSON"),
    (frame(b"[]"), "is a list, not an object"),
    (frame(b"null"), "is a NoneType, not an object"),
    (frame(b"[" * 200_000), "nested too deeply"),
    (frame(b'{"a":' * 200_000), "nested too deeply"),
    (frame(b"{}"), "no 'equinn' entry"),
    (frame(b'{"__metadata__":{}}'), "no 'equinn' entry"),
    (frame(b'{"__metadata__":{"equinn":3}}'), "no 'equinn' entry"),
    (frame(b'{"__metadata__":{"equinn":"{}"},"__metadata__":{"equinn":"{}"}}'), "the key '__metadata__' twice"),
    (frame(b'{"__metadata__":{"equinn":"{\\"a\\":1,\\"a\\":1}"}}'), "the key 'a' twice"),
    (frame(b'{"__metadata__":{"equinn":"{\\"a\\":NaN}"}}'), "the number NaN"),
    (frame(b'{"__metadata__":{"equinn":"{\\"a\\":-Infinity}"}}'), "the number -Infinity"),
    (frame(b'{"__metadata__":{"equinn":"{\\"format_version\\":' + b"9" * 5000 + b'}"}}'), "Exceeds the limit"),
    (frame(b'{"__metadata__":{"equinn":"{}"},"x":3}'), "tensor 'x' has dtype None"),
    (frame(b'{"__metadata__":{"equinn":"{}"},"x":{"dtype":[],"shape":[1]}}'), "tensor 'x' has dtype []"),
    (frame(b'{"__metadata__":{"equinn":"{}"},"x":{"dtype":"F8","shape":[1]}}'), "tensor 'x' has dtype 'F8'"),
    (frame(b'{"__metadata__":{"equinn":"{}"},"x":{"dtype":"F32","shape":[-1]}}'), "tensor 'x' has the shape [-1]"),
    (frame(b'{"__metadata__":{"equinn":"{}"},"x":{"dtype":"F32","shape":[1.0]}}'), "has the shape [1.0]"),
    (frame(b'{"__metadata__":{"equinn":"{}"},"x":{"dtype":"F32","shape":[1099511627776,0]}}'), "has the shape"),
    (
        frame(b'{"__metadata__":{"equinn":"{}"},"x":{"dtype":"F32","shape":[1000000]}}'),
        "the tensors take 4000000 bytes, the file",
    ),
    (frame(b'{"__metadata__":{"equinn":"{}"}}', b"1234"), "the tensors take 0 bytes, the file holds 4"),
    (frame(b'{"__metadata__":{"equinn":"{}"}}'), "format version None"),
    (frame(b'{"__metadata__":{"equinn":"{\\"format_version\\":1}"}}'), "lacks the keys"),
]


@pytest.mark.parametrize(("data", "message"), RAW, ids=lambda x: str(x)[:50])
def test_raw_bytes(tmp_path, data, message):
    assert message in refused(tmp_path / "a.safetensors", data)


def test_headers_that_are_not_canonical(tmp_path, content):
    """Other JSON of the same meaning is refused: no change of the file shall go unnoticed because it means nothing."""
    data, path = content[2], tmp_path / "a.safetensors"
    length = int.from_bytes(data[:8], "little")
    header, raw = data[8 : 8 + length], data[8 + length :]
    entries = json.loads(header)
    reordered = dict(reversed(entries.items()))
    loose = json.loads(entries["__metadata__"]["equinn"])
    variants = {
        "padding": header + b" " * 8,
        "spaces": json.dumps(entries).encode(),
        "order": json.dumps(reordered, separators=(",", ":")).encode(),
        "inner": json.dumps(
            entries | {"__metadata__": {"equinn": json.dumps(loose, sort_keys=True)}}, separators=(",", ":")
        ).encode(),
        "more": json.dumps(
            entries | {"__metadata__": {"equinn": canonical_json(loose), "b": ""}}, separators=(",", ":")
        ).encode(),
    }
    assert int.from_bytes(data[:8], "little") == len(header) and frame(header, raw) == data
    for name, variant in variants.items():
        variant += b" " * (-len(variant) % 8)
        assert variant != header, name
        assert "canonical" in refused(path, frame(variant, raw)), name


def test_infinite_numbers_and_booleans_that_are_none(tmp_path, content):
    header, _, data = content
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip().replace(b'\\"cutoff\\":3.0', b'\\"cutoff\\":1e999')
    assert "not JSON compliant" in refused(tmp_path / "a", frame(text, data[8 + length :]))
    mask = {"mask": torch.tensor([True])}
    assert encode(header, mask).endswith(b"\x01")
    bare = sealed({key: value for key, value in header.items() if key != "sha256"}, mask, b"\x02")
    forged = sealed(header | {"sha256": hashlib.sha256(bare).hexdigest()}, mask, b"\x02")
    assert "neither false nor true" in refused(tmp_path / "a", forged)


def test_paths_that_cannot_be_read(tmp_path, content):
    with pytest.raises(PotentialFileError, match="is no file"):
        Potential.load(tmp_path / "missing")
    with pytest.raises(PotentialFileError, match="Is a directory"):
        decode(tmp_path)
    big = tmp_path / "big"
    with open(big, "wb") as file:
        file.write(content[2])
        file.truncate(potential_file.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(PotentialFileError, match="at most 4294967296 are allowed"):
        Potential.load(big)


# ---- arbitrary input

FUZZ = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@FUZZ
@given(data=st.binary(max_size=200))
@example(data=frame(b"{}"))
def test_random_bytes(tmp_path, data):
    refused(tmp_path / "a.safetensors", data)
    refused(tmp_path / "a.safetensors", frame(data))


@FUZZ
@given(value=JSON)
def test_random_json(tmp_path, value):
    refused(tmp_path / "a.safetensors", frame(json.dumps(value).encode()))
    refused(tmp_path / "a.safetensors", frame(json.dumps({"__metadata__": {"equinn": json.dumps(value)}}).encode()))
    refused(tmp_path / "a.safetensors", frame(json.dumps({"__metadata__": {"equinn": "{}"}, "x": value}).encode()))


PLACES = [(key,) for key in HEADER_FIELDS if key not in ("sha256", "metadata", "code_version")]
PLACES += [("models", 0, key) for key in ("architecture", "hyperparameters", "scale")]
PLACES += [("models", 0, "hyperparameters", key) for key in ("species", "cutoff", "r0")]
PLACES += [("species", 0), ("reference_energies", "6"), ("shift", "6"), ("isolated_energies", "6"), ("units", "energy")]


@FUZZ
@given(place=st.sampled_from(PLACES), value=JSON)
@example(place=("models", 0, "hyperparameters", "cutoff"), value="3.0")
def test_random_values_in_the_header(tmp_path, content, place, value):
    """The hash is right, one value is not: a potential that says the same, or the one error."""
    header, tensors, _ = content
    header = json.loads(canonical_json(header))
    inner = header
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode(header, tensors))
    try:
        loaded = Potential.load(path)
    except PotentialFileError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert loaded.species == (6,) and loaded.cutoff == 3.0
