"""Data files are found by name and hash; a missing one is an error that says where it can be had."""

import pytest
from labelled import copper, save

from ase_equinn.data import file_sha256
from ase_equinn.data_files import find_file
from ase_equinn.train_config import load_config
from ase_equinn.train_sets import read_sets


def test_by_name_and_by_hash(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.xyz").write_text("right")
    (tmp_path / "a.xyz").write_text("wrong")
    right = file_sha256(tmp_path / "deep" / "a.xyz")
    assert find_file(str(tmp_path / "a.xyz")) == tmp_path / "a.xyz"
    assert find_file("a.xyz", beside=tmp_path) == tmp_path / "a.xyz"
    assert find_file("deep/a.xyz", beside=tmp_path) == tmp_path / "deep" / "a.xyz"
    assert find_file("elsewhere/a.xyz", below=tmp_path) == tmp_path / "a.xyz"
    assert find_file("elsewhere/a.xyz", sha256=right, below=tmp_path) == tmp_path / "deep" / "a.xyz"
    assert find_file("renamed.xyz", sha256=right.upper(), below=tmp_path) == tmp_path / "deep" / "a.xyz"


def test_what_a_missing_file_is_told_about(tmp_path):
    (tmp_path / "a.xyz").write_text("wrong")
    with pytest.raises(ValueError, match=f"a.xyz: not the same data: its sha256 is {file_sha256(tmp_path / 'a.xyz')}"):
        find_file(str(tmp_path / "a.xyz"), sha256="0" * 64)
    looked = r"'b.xyz' was not found in the current folder, .*--data DIR adds a folder\)"
    with pytest.raises(FileNotFoundError, match=looked + r"\n    source: example.org\n    licence: MIT$"):
        find_file("b.xyz", source="example.org", licence="MIT", below=tmp_path)
    with pytest.raises(FileNotFoundError, match="folder to look for data in does not exist: '.*nowhere'"):
        find_file("a.xyz", below=tmp_path / "nowhere")


def test_all_missing_files_are_named_at_once(tmp_path):
    """The reader of a shipped train.yaml learns in one go what to fetch, from where, and on what terms."""
    save(tmp_path / "train.xyz", copper(3))
    config = load_config(
        {
            "data": {
                "train": "train.xyz",
                "valid": {"file": "valid.xyz", "sha256": "1" * 64, "source": "https://example.org", "licence": "MIT"},
                "test": [{"file": "test.xyz", "sha256": "2" * 64}, "train.xyz"],
            },
            "output": "folder",
        }
    )
    with pytest.raises(FileNotFoundError) as caught:
        read_sets(config, below=tmp_path)
    message = str(caught.value)
    assert message.startswith("2 data files are missing\ndata file 'valid.xyz' was not found in")
    assert "source: https://example.org\n    licence: MIT\n    sha256 wanted: " + "1" * 64 in message
    assert "'test.xyz'" in message and "2" * 64 in message and "'train.xyz'" not in message
    save(tmp_path / "valid.xyz", copper(1))
    other = "(?s)valid.xyz: not the same data: its sha256 is .*wanted: 1111.*'test.xyz'"
    with pytest.raises(FileNotFoundError, match=other):
        read_sets(config, below=tmp_path)
