"""Files of torch.save are read as data: the numbers are right, and no payload of a malicious one runs."""

import hashlib
import io
import json
import lzma
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ase_equinn.mace_file import read_torch_file
from ase_equinn.mace_objects import Bag, Global

FIXTURES = Path(__file__).parent / "data" / "mace"
TENSORS = json.loads((FIXTURES / "tensors.json").read_text())


def unpacked(name: str, folder: Path) -> Path:
    path = folder / f"{name}.model"
    path.write_bytes(lzma.decompress((FIXTURES / f"{name}.model.xz").read_bytes()))
    return path


def tensors_of(bag: Bag, prefix: str = "") -> dict:
    """A module's state_dict: parameters and buffers by dotted name."""
    found = {}
    for key in ("_parameters", "_buffers"):
        found |= {prefix + name: t for name, t in bag.state.get(key, {}).items() if t is not None}
    for name, child in bag.state.get("_modules", {}).items():
        if isinstance(child, Bag):
            found |= tensors_of(child, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_every_tensor_of_a_mace_model(name, tmp_path):
    """Against the state_dict that mace-torch saw when it wrote the file."""
    model = read_torch_file(unpacked(name, tmp_path))
    assert model.kind == ("MACE" if name == "hco_plain_mace" else "ScaleShiftMACE")
    found = {
        key: [str(t.dtype), list(t.shape), hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16]]
        for key, t in tensors_of(model).items()
        if not key.startswith("spherical_harmonics.")
    }
    assert found == TENSORS[name]
    assert "mace" not in sys.modules


def test_attributes(tmp_path):
    model = read_torch_file(unpacked("hco_heads", tmp_path))
    assert model.get("heads") == ["pbe", "r2scan"] and model.get("no_such_thing") is None
    block = model.get("interactions.0")
    assert block.kind == "RealAgnosticResidualInteractionBlock"
    assert block.get("avg_num_neighbors") == 3.5 and block.get("radial_MLP") == [16, 16]
    assert block.get("conv_tp_weights.layer0.act.f") == Global("torch.nn.functional.silu")
    assert [child.kind for child in model.get("readouts").children()] == ["LinearReadoutBlock", "NonLinearReadoutBlock"]


def test_containers_and_tensors(tmp_path):
    base = torch.arange(24.0)
    saved = {
        "view": base[1:].as_strided((3, 2), (2, 5), 4),
        "same storage": base.view(2, 3, 4),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
        "half": torch.tensor([0.5], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": [1, -(2**70), 2.5, "text", None, True, (), (1,), (1, 2, 3, 4), {}, {"a": {1: 2}}],
        "size": torch.Size([2, 3]),
        "set": {4},
    }
    torch.save(saved, tmp_path / "file.pt")
    loaded = read_torch_file(tmp_path / "file.pt")
    assert list(loaded) == list(saved)
    for name in ("view", "same storage", "scalar", "empty", "bool", "half", "parameter"):
        assert loaded[name].dtype == saved[name].dtype and torch.equal(loaded[name], saved[name]), name
    base = loaded["same storage"].data_ptr()
    assert base <= loaded["view"].data_ptr() < base + 24 * 4
    assert loaded["plain"] == saved["plain"]
    assert loaded["size"] == (2, 3) and loaded["set"] == [4]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path, protocol):
    numbers = [np.float64(1.5), np.float32(-2.5), np.int64(7), np.int32(-8)]
    saved = {"a": [1, (2, 3)], "long": "x" * 300, "tensor": torch.arange(3), "numpy": numbers, "bytes": b"a\xff"}
    torch.save(saved, tmp_path / "file.pt", pickle_protocol=protocol)
    loaded = read_torch_file(tmp_path / "file.pt")
    assert loaded.pop("tensor").tolist() == [0, 1, 2]
    assert loaded == {"a": [1, (2, 3)], "long": "x" * 300, "numpy": [1.5, -2.5, 7, -8], "bytes": b"a\xff"}


# Malicious files. MARKER is a file that a payload makes when it runs; every one is shown to run under pickle.


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads(marker: str) -> dict[str, bytes]:
    import os
    import subprocess

    command = f"touch {marker}".encode()
    text = b"S'" + command + b"'\n"
    run = b"cos\nsystem\n(" + text + b"tR"
    source = f"open({marker!r}, 'w')".encode()
    return {
        "reduce": run + b".",
        "inst": b"(" + text + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text + b"o.",
        "stack_global": pickle.dumps(Call(os.system, command.decode()), protocol=4),
        "popen": pickle.dumps(Call(subprocess.Popen, ["touch", marker]), protocol=2),
        "eval": b"cbuiltins\neval\n(S" + repr(source.decode()).encode() + b"\ntR.",
        "exec": pickle.dumps(Call(exec, source.decode()), protocol=5),
        "in a list": b"](" + run + b"e.",
        "in a dictionary": b"}S'key'\n" + run + b"s.",
        "as a key": b"}" + run + b"S'value'\ns.",
        "in a tuple of arguments": b"ccollections\nOrderedDict\n(](" + run + b"I1\n\x86etR.",
        "in a state": b"cfunctools\npartial\n(cbuiltins\nprint\ntR}S'x'\n" + run + b"s0.",
        "popped": run + b"0I1\n.",
        "memoised": run + b"q\x000h\x00.",
        "function from getattr": (
            b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(" + text + b"tR."
        ),
        "built with its state": b"cfunctools\npartial\n(cbuiltins\nprint\ntR(cos\nsystem\n(" + text + b"t}Ntb)R.",
        "persistent id": b"(S'storage'\n" + run + b"S'0'\nS'cpu'\nI1\ntQ.",
        "instead of a persistent id": run + b"Q.",
        "in the arguments of another": b"cbuiltins\nmax\n(" + run + b"I0\ntR.",
        "newobj argument": b"cbuiltins\nobject\n)" + b"\x81" + run + b"0.",
    }


class Permissive(pickle.Unpickler):
    def persistent_load(self, pid):
        return pid


def archive(path: Path, program: bytes, entries: dict | None = None, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        for name, content in (entries or {}).items():
            file.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("name", sorted(payloads("")))
def test_payload_does_not_run(tmp_path, name):
    marker = tmp_path / "marker"
    program = payloads(str(marker))[name]
    path = archive(tmp_path / "bad.model", program, {"data/0": b"\0" * 8})
    try:
        read_torch_file(path)
    except ValueError:
        pass
    assert not marker.exists()
    Permissive(io.BytesIO(program)).load()  # the payload is real
    for _ in range(500):  # Popen does not wait
        if not marker.exists():
            time.sleep(0.01)
    assert marker.exists()


def test_nothing_is_imported(tmp_path):
    sys.modules.pop("this", None)
    loaded = read_torch_file(archive(tmp_path / "a.model", b"cthis\ns\n."))
    assert loaded == Global("this.s") and "this" not in sys.modules


def test_a_call_stays_a_note(tmp_path):
    loaded = read_torch_file(archive(tmp_path / "a.model", b"cos\nsystem\n(S'ls'\ntR."))
    assert isinstance(loaded, Bag) and loaded.kind == "system" and loaded.name == "os.system" and loaded.args == ("ls",)


def tensor_program(storage=b"ctorch\nFloatStorage\nS'0'\n", offset=0, size=b"(I2\nt", stride=b"(I1\nt") -> bytes:
    pid = b"(S'storage'\n" + storage + b"S'cpu'\nI2\ntQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"I%d\n" % offset + size + stride + b"I00\n"
        b"ccollections\nOrderedDict\n)RtR."
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, None),
        (dict(offset=1), "in a storage of 2 elements"),
        (dict(offset=-1), "a tensor of size"),
        (dict(size=b"(I3\nt"), "in a storage of 2 elements"),
        (dict(stride=b"(I2\nt"), "in a storage of 2 elements"),
        (dict(stride=b"(I-1\nt"), "a tensor of size"),
        (dict(stride=b"(t"), "a tensor of size"),
        (dict(size=b"(I1099511627775\nt", stride=b"(I0\nt"), "in a storage of 2 elements"),
        (dict(size=b"(S'2'\nt"), "a tensor of size"),
        (dict(storage=b"ctorch\nFloatStorage\nS'../0'\n"), "class, key or size is not known"),
        (dict(storage=b"ctorch\nFloatStorage\nS'1'\n"), "no entry 'data/1'"),
        (dict(storage=b"cos\nsystem\nS'0'\n"), "class, key or size is not known"),
        (dict(storage=b"ctorch\nBoolStorage\nS'0'\n"), "neither false nor true"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, change, message):
    path = archive(tmp_path / "a.model", tensor_program(**change), {"data/0": struct.pack("<2f", 1.5, -2.0)})
    if message is None:
        assert read_torch_file(path).tolist() == [1.5, -2.0]
    else:
        with pytest.raises(ValueError, match=message):
            read_torch_file(path)


@pytest.mark.parametrize(
    "program, message",
    [
        (b"", "exhausted|no end"),
        (b"I1\n", "exhausted|no end"),
        (b".", "IndexError"),
        (b"\x86.", "the stack is empty"),
        (b"t.", "IndexError"),
        (b"h\x05.", "KeyError"),
        (b"\x82\x01.", "EXT1 is not allowed"),
        (b"\x97.", "NEXT_BUFFER is not allowed"),
        (b"I1\nI2\nI3\ns.", "items are set on a int"),
        (b"I1\nI2\na.", "items are appended to a int"),
        (b"}(I1\nI2\nI3\nu.", "zip"),
        (b"}]I1\ns.", "a list is the key of a dictionary"),
        (b"I1\n}b.", "attributes are set on a int"),
        (b"cos\nsystem\nI1\nR.", "arguments of a call are not a tuple"),
        (b"I1\nI2\n\x93.", "name of a class is not text"),
        (b"\x8a\xffabc.", "ValueError"),
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'x'\ntR.", "scalar of numpy that is no number"),
    ],
)
def test_unsound_programs(tmp_path, program, message):
    with pytest.raises(ValueError, match=f"(?s)a.model: no model can be read: .*({message})"):
        read_torch_file(archive(tmp_path / "a.model", program))


def test_deep_nesting_is_harmless(tmp_path):
    depth = 300_000
    nested = read_torch_file(archive(tmp_path / "a.model", b"I1\n" + b"\x85" * depth + b"."))
    assert type(nested) is tuple
    with pytest.raises(ValueError, match="a tuple is the key"):
        read_torch_file(archive(tmp_path / "b.model", b"}I1\n" + b"\x85" * depth + b"I2\ns."))
    calls = read_torch_file(archive(tmp_path / "c.model", b"cos\nsystem\n" * 1000 + b"I1\n" + b"\x85R" * 1000 + b"."))
    assert isinstance(calls, Bag)


def test_other_files(tmp_path):
    (tmp_path / "text.model").write_text("no model")
    torch.save({"a": 1}, tmp_path / "old.model", _use_new_zipfile_serialization=False)
    archive(tmp_path / "compressed.model", b"I1\n.", compression=zipfile.ZIP_DEFLATED)
    archive(tmp_path / "big_endian.model", b"I1\n.", {"byteorder": "big"})
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "script.model")
    with zipfile.ZipFile(tmp_path / "no_pickle.model", "w") as file:
        file.writestr("archive/version", "3")
    for name, message in [
        ("text", "not a zip file"),
        ("old", "not a zip file"),
        ("compressed", "is compressed"),
        ("big_endian", "byte order b'big'"),
        ("script", "TorchScript archive"),
        ("no_pickle", "0 entries end in /data.pkl"),
    ]:
        with pytest.raises(ValueError, match=f"{name}.model: no model can be read: ValueError: .*{message}"):
            read_torch_file(tmp_path / f"{name}.model")
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "missing.model")


def test_a_damaged_file_is_refused(tmp_path):
    """A changed byte of the pickle either leaves a readable object or a ValueError, and the zip's checksum sees it."""
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.SiLU()), tmp_path / "good.model")
    with zipfile.ZipFile(tmp_path / "good.model") as file:
        entries = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    program = entries.pop("data.pkl")
    generator, refused = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        changed = bytearray(program)
        changed[torch.randint(len(program), (), generator=generator)] = torch.randint(256, (), generator=generator)
        try:
            read_torch_file(archive(tmp_path / "changed.model", bytes(changed), entries))
        except ValueError:
            refused += 1
    assert 50 < refused < 300
    content = bytearray((tmp_path / "good.model").read_bytes())
    content[content.index(program) + 100] ^= 1
    (tmp_path / "flipped.model").write_bytes(content)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        read_torch_file(tmp_path / "flipped.model")
