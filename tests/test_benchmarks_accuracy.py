"""benchmarks/accuracy.py and cards.py: silicon beside published errors, its card, and labels that do not overlap."""

import json
from pathlib import Path

import numpy as np
import pytest

from ase_equinn import shipped_potentials

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import accuracy
    import cards

    return accuracy, cards


def test_silicon_beside_published_errors(benchmarks):
    """Evaluated now, the errors are those in the metadata; without the data they are taken from there and marked."""
    accuracy, _ = benchmarks
    silicon = shipped_potentials()["silicon"]
    now = accuracy.judge(silicon, ROOT / "examples" / "data", False)
    before = accuracy.judge(silicon, None, False)
    assert now.evaluated and not before.evaluated
    assert (now.energy, now.force) == pytest.approx((before.energy, before.force), rel=1e-3)  # float32, another batch
    assert now.name == "Zuo 2020 Si" and now.n_frames == 25 and now.published["MTP"]["force"] == 60
    text = accuracy.tables([now])
    assert f"**{now.energy:.3g} / {now.force:.3g}** |" in text and "MTP 2.21 / 60 · " in text
    marked = accuracy.tables([before])
    assert r"** \* |" in marked and "not evaluated again" in marked and r"\*" not in text


def test_labels_are_moved_apart(benchmarks):
    accuracy, _ = benchmarks
    heights = sorted(np.random.default_rng(0).uniform(0, 1, 12))
    found = accuracy.spread(heights, 0.05)
    assert np.diff(found).min() > 0.05 - 1e-12
    assert np.mean(found) == pytest.approx(np.mean(heights))
    assert accuracy.spread([0.1, 0.5], 0.05) == [0.1, 0.5]
    assert accuracy.spread([0.1, 0.1], 0.05) == pytest.approx([0.075, 0.125])


def test_readme_part_is_replaced(benchmarks, tmp_path):
    accuracy, _ = benchmarks
    file = tmp_path / "README.md"
    file.write_text(f"a\n{accuracy.START}\nold\n{accuracy.END}\nb\n")
    accuracy.into_readme(file, "new")
    assert file.read_text() == f"a\n{accuracy.START}\nnew\n{accuracy.END}\nb\n"
    file.write_text("no marks")
    with pytest.raises(SystemExit, match="must hold"):
        accuracy.into_readme(file, "new")


def test_card_of_silicon(benchmarks, tmp_path):
    """Sections in order; tables of every layout; what is not there is left out."""
    _, cards = benchmarks
    folder = shipped_potentials()["silicon"]
    (tmp_path / "molecules.json").write_text(json.dumps({"Torsions": {"C-C": {"barrier, eV": 0.12345}}}))
    (tmp_path / "holes.json").write_text(json.dumps({"sound": True, "tests": [{"test": "pair", "holes": 0}]}))
    (tmp_path / "properties.json").write_text(json.dumps({"a, A": 5.469, "stable": True, "phonons": None}))
    (tmp_path / "limits.md").write_text("Crystals only.\n")
    text = cards.full_card(folder, tmp_path)
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["Errors", "Properties", "In use", "Far from the data", "Limits", "Data", "Training"]
    lines = ["| MTP | 2.21 | 60 |", "| C-C | 0.123 |", "| pair | 0 |", "| a, A | 5.47 |", "| stable | yes |"]
    for line in [*lines, "Crystals only."]:
        assert line in text
    assert text.index("* train `") < text.index("* valid `") < text.index("* test `")
    bare = cards.full_card(folder, tmp_path / "nothing")
    assert "## Limits" not in bare and "Published for this test set" in bare


def test_properties_and_cost_of_a_crystal_in_a_card(benchmarks, tmp_path):
    """The layouts of `equinn properties --json` and `equinn bench --json`; long lists can be dropped from them."""
    _, cards = benchmarks
    tensor = np.diag([160.0] * 3 + [80.0] * 3)
    tensor[:3, :3] += 60 * (1 - np.eye(3))
    found = {
        "name": "Si", "clamped": {"tensor": tensor.tolist()}, "relaxed": None, "phonons": None, "vacancy": None,
        "dynamics": [],
        "lattice": {"lengths": [5.4694, 5.4694, 5.4694], "bulk_modulus": 91.5, "energies": [0.0] * 13},
        "surfaces": [{"miller": [1, 1, 1], "energy": 1.4656}],
    }  # fmt: skip
    (tmp_path / "properties.json").write_text(json.dumps(cards.shortened(found)))
    text = cards.tabulated("properties", tmp_path / "properties.json")
    assert "energies" not in (tmp_path / "properties.json").read_text()
    for line in ("| a, A | 5.4694 | 5.469 |", "| C12, GPa | 60.0 | 56.5 |", "| C44, GPa | 80.0 | 98.9 |", "(111)"):
        assert line in text
    rows = [{"n_atoms": 64, "us_per_atom": 23.456, "ms_per_step": 1.5, "model": 0.9}]
    bench = {"dtype": "float32", "threads": 1, "evaluation": "native programs", "device": "cpu", "cpu": "X"}
    (tmp_path / "bench.json").write_text(json.dumps(bench | {"torch": "2", "rows": rows}))
    text = cards.tabulated("bench", tmp_path / "bench.json")
    assert "(float32, 1 thread, native programs) on X" in text and "| 64 | 23.5 | 1.5 |" in text


def test_published_numbers_are_complete(benchmarks):
    """Every set is told by a hash, every number has a source."""
    accuracy, _ = benchmarks
    for entry in accuracy.PUBLISHED["sets"]:
        assert len(entry["test_sha256"]) == 64 and entry["kind"] in accuracy.KEYS
        for numbers in entry["published"].values():
            assert numbers["source"] and numbers["force"] > 0 and (numbers["energy"] is None or numbers["energy"] > 0)
