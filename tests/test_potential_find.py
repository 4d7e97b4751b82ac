"""A path or a name means one potential, or an error that lists what there is."""

import os
from pathlib import Path

import pytest
import toy

import ase_equinn
from ase_equinn.potential import Potential, PotentialFileError, read_header, shipped_potentials
from ase_equinn.potential_find import find_potential


@pytest.fixture
def home(tmp_path, monkeypatch):
    """(shipped folder, current directory): a package that ships `silicon` and `ethanol`, and an empty folder."""
    toy.register(monkeypatch)
    package, here = tmp_path / "site" / "ase_equinn", tmp_path / "here"
    here.mkdir()
    monkeypatch.setattr(ase_equinn, "__file__", str(package / "__init__.py"))
    for number, name in ((14, "silicon"), (6, "ethanol")):
        Potential(toy.Pair([number], 3.0)).save(package / "potentials" / name)
    (package / "potentials" / "empty").mkdir()
    monkeypatch.chdir(here)
    return package / "potentials", here


def test_shipped_names(home):
    shipped, _ = home
    assert shipped_potentials() == {"ethanol": shipped / "ethanol", "silicon": shipped / "silicon"}
    assert Potential.load("silicon").species == (14,)
    assert read_header("ethanol")["species"] == [6]
    assert find_potential("silicon") == shipped / "silicon" / "model.safetensors"


def test_potentials_beside_the_package_are_found_too(home):
    """As in a checkout, where potentials/ lies beside ase_equinn/; what is installed inside the package wins."""
    shipped, _ = home
    beside = shipped.parent.parent / "potentials"
    Potential(toy.Pair([8], 3.0)).save(beside / "oxygen")
    Potential(toy.Pair([8], 3.0)).save(beside / "silicon")
    assert list(shipped_potentials()) == ["ethanol", "oxygen", "silicon"]
    assert Potential.load("oxygen").species == (8,)
    assert Potential.load("silicon").species == (14,)


def test_files_and_folders(home):
    _, here = home
    file = Potential(toy.Pair([8], 3.0)).save("mine")
    assert file == Path("mine/model.safetensors")
    renamed = here / "other.name"
    os.link(file, renamed)
    for path in ("mine", "mine/", "./mine", Path("mine"), here / "mine", file, str(file), renamed, "other.name"):
        assert Potential.load(path).species == (8,), path


def test_a_name_that_means_two_potentials_is_refused(home):
    shipped, here = home
    (here / "silicon").mkdir()
    assert Potential.load("silicon").species == (14,)  # results of a run, say: no potential in it
    Potential(toy.Pair([8], 3.0)).save("silicon")
    with pytest.raises(PotentialFileError, match=r"write './silicon' for the latter") as caught:
        Potential.load("silicon")
    assert str(shipped / "silicon") in str(caught.value) and str(here / "silicon") in str(caught.value)
    for path in ("./silicon", "silicon/", Path("silicon")):
        assert Potential.load(path).species == (8,)
    assert Potential.load(shipped / "silicon").species == (14,)


def test_a_copy_of_the_shipped_potential_is_no_conflict(home):
    shipped, here = home
    (here / "silicon").mkdir()
    (here / "silicon" / "model.safetensors").write_bytes((shipped / "silicon" / "model.safetensors").read_bytes())
    assert Potential.load("silicon").species == (14,)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("silicn", r"'silicn' is no file, .*; did you mean 'silicon'\? \(shipped: ethanol, silicon\)"),
        ("nothing/like/it", r"is no file, no folder and no shipped potential \(shipped: ethanol, silicon\)"),
        ("folder", r"is a folder without model.safetensors \(shipped"),
        (Path("silicon"), r"'silicon' is no file"),
        ("", "is a folder without model.safetensors"),
        ("a" * 5000, "File name too long"),
        ("nul\0byte", "is no file"),
        ("pipe", "is neither a file nor a folder"),
    ],
    ids=lambda x: str(x)[:20].replace("\0", "0"),
)
def test_what_is_not_there(home, path, message):
    Path("folder").mkdir()
    os.mkfifo("pipe")
    with pytest.raises(PotentialFileError, match=message) as caught:
        Potential.load(path)
    assert len(str(caught.value)) < 600


def test_no_shipped_potentials_at_all(home, tmp_path, monkeypatch):
    monkeypatch.setattr(ase_equinn, "__file__", str(tmp_path / "bare" / "ase_equinn" / "__init__.py"))
    assert shipped_potentials() == {}
    with pytest.raises(PotentialFileError, match=r"\(shipped: none\)"):
        Potential.load("silicon")
