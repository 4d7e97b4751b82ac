"""The demo: its numbers are those of the potential, its files are complete, nobody else's are touched."""

import json

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read
from rich.console import Console
from test_elastic import tersoff

import ase_equinn.demo as module
from ase_equinn.demo import demo, demo_table
from ase_equinn.models.schnet import SchNet
from ase_equinn.potential import Potential

FILES = {"relaxation.png", "energy.png", "temperature.png", "rdf.png", "results.json"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """With Tersoff's potential, whose properties are published, and 8 atoms instead of 64 to be quick."""
    start = module._start

    def small():
        atoms = bulk("Si", cubic=True, a=5.43)
        atoms.set_cell(atoms.cell * [1.03, 1.0, 0.98], scale_atoms=True)
        atoms.rattle(0.1, seed=7)
        return atoms

    seen = []
    module._start = small
    try:
        found = demo(
            tmp_path_factory.mktemp("x") / "demo", tersoff(), steps=20, progress=lambda *call: seen.append(call)
        )
    finally:
        module._start = start
    return found, seen


def test_table_has_the_published_constants_beside_dft(report):
    rows = {row.quantity: row for row in report[0].rows}
    a = rows["a of lowest energy"]
    assert (a.clamped, a.relaxed, a.dft) == (pytest.approx(5.432, abs=1e-3), pytest.approx(5.432, abs=2e-3), 5.469)
    assert rows["a of zero stress"].clamped == pytest.approx(a.clamped, abs=1e-4)
    assert rows["bulk modulus"].clamped == pytest.approx(97.8, abs=0.2)
    expected = {"C11": (142.5, 142.5, 153.0), "C12": (75.4, 75.4, 56.5), "C44": (118.8, 69.0, 98.9)}
    for name, (clamped, relaxed, dft) in expected.items():
        assert rows[name].clamped == pytest.approx(clamped, abs=0.1)
        assert rows[name].relaxed == pytest.approx(relaxed, abs=0.1)
        assert rows[name].dft == dft
    assert 1 < rows["vacancy formation"].relaxed < 6
    assert abs(rows["NVE energy drift"].relaxed) < 50  # 20 steps only
    console = Console(width=90, record=True)
    console.print(demo_table(report[0]))
    text = console.export_text()
    for word in ("118.8", "69.0", "98.9", "5.4690", "meV/atom/ps"):
        assert word in text


def test_files_are_complete(report):
    folder = report[0].folder
    assert {path.name for path in folder.iterdir()} >= FILES
    for name in FILES - {"results.json"}:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    stored = json.loads((folder / "results.json").read_text())
    assert stored["finished"] is True
    assert stored["notes"] == []
    assert stored["rows"][3]["quantity"] == "C11"
    assert len(read(folder / "nve/md.xyz", ":")) == 3
    assert len((folder / "nvt/md.csv").read_text().splitlines()) == 12
    assert len(read(folder / "vacancy/relaxed.xyz")) == 7


def test_progress_counts_up_to_the_end(report):
    done = [step for _, step, _ in report[1]]
    assert done == sorted(done)
    name, last, total = report[1][-1]
    assert last == total
    assert list(dict.fromkeys(name for name, _, _ in report[1])) == [
        "relax 64 atoms", "relax vacancy", "NVE", "NVT", "elastic constants",
    ]  # fmt: skip


def test_own_folder_is_replaced_and_others_are_refused(report, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "relax", stop)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds other files"):
        demo(tmp_path, tersoff())
    with pytest.raises(ValueError, match="holds other files"):
        demo(tmp_path / "thesis.tex", tersoff())
    with pytest.raises(KeyboardInterrupt):
        demo(report[0].folder, tersoff())
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path / "new", tersoff())
    assert json.loads((tmp_path / "new/results.json").read_text()) == {"finished": False}
    with pytest.raises(KeyboardInterrupt):  # an unfinished demo is one's own too
        demo(tmp_path / "new", EMT())
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_potential_without_silicon_is_refused_before_anything_is_written(tmp_path):
    potential = Potential(SchNet((29,), 4.0, n_channels=8, n_layers=1, n_basis=8))
    with pytest.raises(ValueError, match=r"does not know: its elements are \[29\]"):
        demo(tmp_path / "demo", potential)
    assert not (tmp_path / "demo").exists()


def test_shipped_potential_is_close_to_dft(tmp_path):
    """What `equinn demo` does, with short runs: within 0.5 % of DFT's lattice constant and 20 % of its stiffness."""
    report = demo(tmp_path / "demo", steps=40)
    rows = {row.quantity: row for row in report.rows}
    assert report.notes == []
    for name in ("a of lowest energy", "a of zero stress"):
        assert rows[name].clamped == pytest.approx(5.469, rel=0.005)
    for name in ("bulk modulus", "C11", "C12", "C44"):
        assert rows[name].clamped == pytest.approx(rows[name].dft, rel=0.2), name
    assert rows["C44"].relaxed < rows["C44"].clamped - 10
