"""A committee in one file: bitwise round trips, and every fault is the one clear error that names the file."""

import copy
import pickle

import pytest
import torch
import toy
from potential_files import error_of, refused

from ase_equinn import Committee, Potential, PotentialFileError, SchNet, read_header
from ase_equinn.potential_committee import read_potentials
from ase_equinn.potential_file import MAX_MEMBERS, decode, encode
from ase_equinn.uncertainty import Scale, Uncertainty
from ase_equinn.uncertainty_spread import Spread


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    toy.register(monkeypatch)


def member(seed: int, build=lambda: toy.Embedded([6, 14], 3.0), **arguments) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Potential(build(), **arguments)


def committee() -> Committee:
    """Members of different architectures, cutoffs and dtypes; the last has uncertainties of its own."""
    known = Uncertainty(
        {z: torch.randn(2, 3, generator=torch.Generator().manual_seed(z)) for z in (6, 14)},
        {z: torch.ones(3) for z in (6, 14)}, Scale(0.01, 1.0, 1.0, {6: 1.0, 14: 1.0}), 0.5,
    )  # fmt: skip
    members = [
        member(0, lambda: SchNet([6, 14], 4.0, n_channels=4, n_layers=1, n_basis=3), metadata={"name": "first"}),
        member(1, lambda: [toy.Pair([6, 14], 2.5).double(), toy.Embedded([6, 14], 3.5).double()], shift=-1.5),
        member(2, uncertainty=known, reference_energies={6: -37.1, 14: 1 / 3}),
    ]
    return Committee(members, Spread({6: 0.6, 14: 1.7}, 0.01, 0.4, {"valid": {"n_atoms": 7}}))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A small file: its header, tensors and bytes."""
    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        members = [member(seed, lambda: toy.Pair([6], 3.0)) for seed in range(3)]
        path = Committee(members, Spread({6: 0.6}, 0.01, 0.4)).save(tmp_path_factory.mktemp("committee"))
        return *decode(path), path.read_bytes()


# ---- round trips


def test_saved_and_loaded_gives_the_same_bits(tmp_path):
    found = committee()
    path = found.save(tmp_path / "new/folder")
    assert path == tmp_path / "new/folder/model.safetensors"
    for source in (path, path.parent, str(path)):
        loaded = Committee.load(source)
        assert loaded.species == (6, 14) and loaded.spread.to_file() == found.spread.to_file()
        for one, other in zip(loaded.members, found.members, strict=True):
            weights = other.models.state_dict()
            assert not one.training and one.dtype == other.dtype and one.cutoffs == other.cutoffs
            assert all(torch.equal(tensor, weights[name]) for name, tensor in one.models.state_dict().items())
            assert one.isolated_energies() == other.isolated_energies() and one.metadata == other.metadata
        assert loaded.members[2].uncertainty.to_file()[0] == found.members[2].uncertainty.to_file()[0]
        assert loaded.members[0].uncertainty is None
    assert loaded.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    header = read_header(path)
    assert header["format_version"] == 3 and [m["format_version"] for m in header["members"]] == [1, 1, 2]


def test_a_member_of_its_own_file_is_the_same(tmp_path):
    """Out of the committee into a file: the bytes of the potential that went in."""
    found = committee()
    loaded = Committee.load(found.save(tmp_path / "all"))
    for k, (one, other) in enumerate(zip(loaded.members, found.members, strict=True)):
        assert one.save(tmp_path / f"a{k}").read_bytes() == other.save(tmp_path / f"b{k}").read_bytes()


def test_one_and_several_are_not_taken_for_each_other(tmp_path):
    path = committee().save(tmp_path / "several")
    with pytest.raises(
        PotentialFileError, match="several.*: a committee of 3 potentials, not one: EquiCalculator takes"
    ):
        Potential.load(path.parent)
    single = member(0).save(tmp_path / "single")
    with pytest.raises(PotentialFileError, match="single.* holds a single potential, no committee"):
        Committee.load(single)
    (one,), spread = read_potentials(single)
    assert spread is None and one.species == (6, 14)


def test_a_member_that_cannot_be_stored_leaves_the_old_file(tmp_path):
    found = committee()
    before = found.save(tmp_path).read_bytes()
    with torch.no_grad():
        next(found.members[1].parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"model.safetensors is not written: member 1: tensor .* not finite"):
        found.save(tmp_path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


# ---- who can be a committee


def test_members_that_do_not_go_together():
    spread = Spread({6: 1.0, 14: 1.0}, 0.1, 0.1)
    members = [member(seed) for seed in range(3)]
    scaled = copy.deepcopy(members[0])
    scaled.scale = (2.0,)
    assert len(Committee([members[0], scaled, members[1]], spread).members) == 3
    other = member(3, lambda: toy.Pair([6, 8, 14], 3.0))
    for given, message in (
        (members[:2], "a committee has 3 to 100 potentials, got 2"),
        (members[:1] * (MAX_MEMBERS + 1), "got 101"),
        ([*members[:2], other], r"member 0 knows the elements \(6, 14\), member 2 knows \(6, 8, 14\)"),
        ([*members, copy.deepcopy(members[1])], "members 1 and 3 have the same weights"),
    ):
        with pytest.raises(ValueError, match=message):
            Committee(given, spread)
    with pytest.raises(ValueError, match=r"the spread is for the species \(6,\), the members for \(6, 14\)"):
        Committee(members, Spread({6: 1.0}, 0.1, 0.1))


# ---- damage


def test_changed_bytes_are_errors(tmp_path, content):
    """One bit of every 13th byte; and every 50th length."""
    data, path = content[2], tmp_path / "a.safetensors"
    for k in range(0, len(data), 13):
        refused(path, data[:k] + bytes([data[k] ^ 1 << k % 8]) + data[k + 1 :], read_potentials)
    for length in range(0, len(data), 50):
        refused(path, data[:length], read_potentials)
    assert "damaged" in refused(path, data + b"\0", Committee.load)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    assert "not a potential file" in refused(tmp_path / "model.safetensors", pickle.dumps(Bomb()), read_potentials)
    assert not (tmp_path / "executed").exists()


def only_two(header, tensors):
    header["members"].pop()
    for name in [name for name in tensors if name.startswith("2.")]:
        tensors.pop(name)


def twice(header, tensors):
    header["members"][2] = header["members"][0]
    for name in [name for name in tensors if name.startswith("2.")]:
        tensors[name] = tensors["0" + name[1:]]


FAULTS = {
    "no members": (lambda h, t: h.update(members=[]), "0 members, allowed are 1 to 100"),
    "members of a number": (lambda h, t: h["members"].__setitem__(1, 7), "member 1 is no potential: 7"),
    "a committee of committees": (lambda h, t: h["members"][1].update(format_version=3), "member 1 is no potential"),
    "a member of version True": (lambda h, t: h["members"][1].update(format_version=True), "member 1 is no potential"),
    "a member without cutoff": (lambda h, t: h["members"][1].pop("cutoff"), r"member 1: the header lacks .*'cutoff'"),
    "a member with a hash": (lambda h, t: h["members"][1].update(sha256=""), "unknown keys .*'sha256'"),
    "species as text": (lambda h, t: h["members"][2].update(species=["6"]), "member 2: species .* are not sorted"),
    "unknown architecture": (
        lambda h, t: h["members"][0]["models"][0].update(architecture="os.system"),
        "member 0: architecture 'os.system' is not known",
    ),
    "a changed energy": (
        lambda h, t: h["members"][2]["isolated_energies"].update({"6": 5.0}),
        "member 2: an isolated atom of element 6",
    ),
    "a tensor of nobody": (lambda h, t: t.update({"3.x": torch.zeros(1)}), r"tensors that no member has: \['3.x'\]"),
    "a tensor of 00": (lambda h, t: t.update({"00.x": torch.zeros(1)}), r"tensors that no member has: \['00.x'\]"),
    "a tensor too few": (lambda h, t: t.pop("1.0.bias"), r"member 1: tensors that are missing: \['0.bias'\]"),
    "a spread of nothing": (lambda h, t: h.update(spread={}), "its content is no committee: spread {}"),
    "a spread for others": (lambda h, t: h["spread"].update(factors={"7": 1.0}), "not one number for each of"),
    "only two": (only_two, "a committee has 3 to 100 potentials, got 2"),
    "one twice": (twice, "members 0 and 2 have the same weights"),
    "both kinds": (lambda h, t: h.update(models=[]), r"unknown keys \['models'\]"),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
def test_faults_under_a_right_hash(tmp_path, content, change, message):
    header, tensors = copy.deepcopy(content[0]), dict(content[1])
    change(header, tensors)
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode(header, tensors))
    error_of(path, read_potentials)
    with pytest.raises(PotentialFileError, match=message):
        read_potentials(path)
