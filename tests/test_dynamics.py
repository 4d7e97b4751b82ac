"""Relaxation and dynamics: physics against analytic results, and restarts to the last bit after a SIGKILL."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from pair_calculator import PairCalculator

from ase_equinn.dynamics import MDSettings, RelaxSettings, RunError, RunFileError, md, relax
from ase_equinn.md_integrators import MEMORY
from ase_equinn.relax import OPTIMIZERS
from ase_equinn.runfiles import load_restart

HERE = Path(__file__).parent


def crystal(rattle=0.05):
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((2, 2, 1))
    atoms.rattle(rattle, seed=3)
    return atoms


def rows(path):
    with open(path) as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def bits(path):
    restart = load_restart(path)
    arrays = {**restart.atoms.arrays, "cell": np.array(restart.atoms.cell), **restart.state}
    return restart.step, str(restart.rng), {name: np.asarray(values).tobytes() for name, values in arrays.items()}


# ---- restart


RUN = """
import os, signal, sys
from pathlib import Path
import test_dynamics as t
kill, folder = int(sys.argv[1]), Path(sys.argv[2])
def die(step, *_):
    if step == kill:
        os.kill(os.getpid(), signal.SIGKILL)
for name, run in t.RUNS.items():
    if kill and os.fork():
        assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL, name
        continue
    run(folder / name, "resume", die)
"""
MD = MDSettings(temperature=400, initial_temperature=800, timestep=3.0, pressure=0.5, seed=5)
OFTEN = {"log_every": 4, "frame_every": 10, "restart_every": 15}


def md_run(ensemble):
    settings = replace(MD, ensemble=ensemble, **OFTEN)

    def run(folder, existing, progress=None):
        md(crystal(), PairCalculator(), settings, 50, output=folder, existing=existing, progress=progress)

    return run


def relax_run(optimizer):
    settings = RelaxSettings(fmax=1e-4, cell="full", optimizer=optimizer, restart_every=7)

    def run(folder, existing, progress=None):
        atoms = crystal(0.1)
        atoms.set_cell(atoms.cell @ np.diag([1.02, 0.99, 1.0]), scale_atoms=True)
        relax(atoms, PairCalculator(), settings, 24, output=folder, existing=existing, progress=progress)

    return run


def potential_run(folder, existing, progress=None):
    """EquiCalculator in float32, with a skin: a resumed run rebuilds its neighbour list at other steps."""
    from ase_equinn.calculator import EquiCalculator
    from ase_equinn.models.schnet import SchNet
    from ase_equinn.potential import Potential

    torch.manual_seed(3)
    potential = Potential(SchNet((29,), 4.0, avg_num_neighbors=18.0, n_channels=8, n_layers=2, n_basis=8), scale=0.3)
    calculator = EquiCalculator(potential, device="cpu", skin=0.4)
    settings = replace(MD, ensemble="nvt", **OFTEN)
    run = md(crystal(), calculator, settings, 50, output=folder, existing=existing, progress=progress)
    assert np.linalg.norm(run.atoms.positions - crystal().positions, axis=1).max() > 0.6


RUNS = (
    {"equinn": potential_run} | {name: md_run(name) for name in MEMORY} | {name: relax_run(name) for name in OPTIMIZERS}
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Every run of RUNS three times: uninterrupted here; killed in one process at step 23 and continued in another."""
    folder = tmp_path_factory.mktemp("killed")
    for name, run in RUNS.items():
        run(folder / "whole" / name, "refuse")
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", RUN]
    subprocess.run([*command, "23", folder / "broken"], env=environment, check=True)
    before = {name: files(folder / "broken" / name) for name in RUNS}
    subprocess.run([*command, "0", folder / "broken"], env=environment, check=True)
    return folder, before


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_run_ends_bitwise_where_the_uninterrupted_one_ends(killed, name):
    folder, before = killed
    kind = "relax" if name in OPTIMIZERS else "md"
    assert f"{kind}.restart.npz" in before[name] and "relaxed.xyz" not in before[name]
    restart = f"{name}/{kind}.restart.npz"
    assert bits(folder / "whole" / restart) == bits(folder / "broken" / restart)
    whole, broken = files(folder / "whole" / name), files(folder / "broken" / name)
    assert set(whole) == set(broken)  # no temporary file is left either
    for file in whole:
        if not file.endswith(".npz"):
            assert whole[file] == broken[file], file
    steps = [row["step"] for row in rows(folder / "broken" / name / f"{kind}.csv")]
    assert steps == (list(range(0, 51, 4)) if kind == "md" else list(range(25)))


@pytest.mark.parametrize("name", ["nvt", "bfgs"])
def test_kill_left_rows_behind_the_restart_file(killed, name):
    """The test above would prove nothing if the killed process had been at a restart step."""
    _, before = killed
    kind, every = ("relax", 1) if name in OPTIMIZERS else ("md", 4)
    lines = before[name][f"{kind}.csv"].decode().splitlines()
    assert int(lines[-1].split(",")[0]) == 23 - 23 % every


def test_rows_written_after_the_restart_file_are_cut_even_if_torn(tmp_path):
    run = md_run("nve")
    run(tmp_path / "whole", "refuse")
    md(crystal(), PairCalculator(), replace(MD, **OFTEN), 30, output=tmp_path / "torn")
    for name in ("md.csv", "md.xyz"):
        with open(tmp_path / "torn" / name, "ab") as file:
            file.write(b"32,96.0,-1.2")
    run(tmp_path / "torn", "resume")
    assert (tmp_path / "torn/md.csv").read_bytes() == (tmp_path / "whole/md.csv").read_bytes()
    assert (tmp_path / "torn/md.xyz").read_bytes() == (tmp_path / "whole/md.xyz").read_bytes()


def test_longer_run_continues_a_finished_one(tmp_path):
    settings = replace(MD, ensemble="nvt", **OFTEN)
    md(crystal(), PairCalculator(), settings, 20, output=tmp_path / "a")
    md(crystal(), PairCalculator(), None, 50, output=tmp_path / "a", existing="resume")
    md(crystal(), PairCalculator(), settings, 50, output=tmp_path / "b")
    assert bits(tmp_path / "a/md.restart.npz") == bits(tmp_path / "b/md.restart.npz")


def test_restart_file_keeps_the_whole_structure(tmp_path):
    atoms = crystal()
    atoms.set_constraint(FixAtoms([0, 3]))
    atoms.set_masses(np.linspace(50, 60, len(atoms)))
    atoms.set_tags(range(len(atoms)))
    atoms.info.update(charge=-1, label="slab", vector=np.array([0.1, 0.2]))
    run = md(atoms, PairCalculator(), replace(MD, ensemble="nvt"), 3, output=tmp_path)
    stored = load_restart(run.restart).atoms
    assert stored.info["charge"] == -1 and stored.info["label"] == "slab"
    assert np.array_equal(stored.info["vector"], atoms.info["vector"])
    assert np.array_equal(stored.constraints[0].index, [0, 3])
    for name in ("tags", "masses"):
        assert np.array_equal(stored.arrays[name], atoms.arrays[name])
    assert np.array_equal(run.atoms.positions[[0, 3]], atoms.positions[[0, 3]])
    assert np.abs(run.atoms.positions[1] - atoms.positions[1]).max() > 1e-3


def test_existing_files_are_refused_or_overwritten_as_asked(tmp_path):
    settings = replace(MD, **OFTEN)
    md(crystal(), PairCalculator(), settings, 20, output=tmp_path)
    before = files(tmp_path)
    with pytest.raises(RunFileError, match="md.csv exists"):
        md(crystal(), PairCalculator(), settings, 20, output=tmp_path)
    assert files(tmp_path) == before
    with pytest.raises(ValueError, match="'maybe'"):
        md(crystal(), PairCalculator(), settings, 20, output=tmp_path, existing="maybe")
    md(crystal(), PairCalculator(), settings, 20, output=tmp_path, existing="overwrite")
    assert files(tmp_path).keys() == before.keys()
    assert all(files(tmp_path)[name] == before[name] for name in ("md.csv", "md.xyz"))


def test_resume_refuses_another_run(tmp_path):
    md(crystal(), PairCalculator(), replace(MD, **OFTEN), 20, output=tmp_path)

    def resume(atoms=None, steps=40, **changes):
        md(atoms or crystal(), PairCalculator(), replace(MD, **changes), steps, output=tmp_path, existing="resume")

    with pytest.raises(ValueError, match="timestep = 3.0; received 2.0"):
        resume(timestep=2.0)
    with pytest.raises(ValueError, match="Cu8"):
        resume(bulk("Cu", cubic=True).repeat((2, 1, 1)))
    with pytest.raises(ValueError, match="at least the 20 .* received 10"):
        resume(steps=10)
    os.truncate(tmp_path / "md.csv", 50)
    with pytest.raises(RunFileError, match="md.csv has 50 bytes"):
        resume()


@pytest.mark.parametrize("damage", ["truncate", "flip", "text", "newer"])
def test_damaged_restart_file_is_one_clear_error(tmp_path, damage):
    run = md(crystal(), PairCalculator(), replace(MD, **OFTEN), 20, output=tmp_path)
    content = run.restart.read_bytes()
    at = content.index(b"atoms.positions") + 200
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    changed = {"truncate": content[:-40], "flip": flipped, "text": b"not a zip file"}
    if damage == "newer":
        with np.load(run.restart) as file:
            arrays = dict(file)
        arrays["header"] = np.array(str(arrays["header"]).replace('"format": 1', '"format": 2'))
        np.savez(run.restart, **arrays)
    else:
        run.restart.write_bytes(changed[damage])
    with pytest.raises(RunFileError, match="format 2" if damage == "newer" else "cannot read restart file"):
        md(crystal(), PairCalculator(), None, 40, output=tmp_path, existing="resume")


# ---- stopping


class Failing(PairCalculator):
    """Goes wrong at the given evaluation, in the given way."""

    def __init__(self, at, how):
        super().__init__()
        self.at, self.how = at, how

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self.count < self.at:
            return
        if self.how == "error":
            raise RuntimeError("out of memory")
        self.results["forces"][5] *= {"nan": np.nan, "kick": 1e5}[self.how]


@pytest.mark.parametrize(
    ("ensemble", "how", "message"),
    [
        ("nve", "error", "RuntimeError: out of memory"),
        ("nvt-nhc", "nan", "force of atom 5"),
        ("nvt", "kick", r"atom 5 \(Cu\) moved"),
    ],
)
def test_failure_stops_the_run_and_leaves_the_restart_file(tmp_path, how, message, ensemble):
    settings = replace(MD, ensemble=ensemble, **OFTEN)
    with pytest.raises(RunError, match=message) as caught:
        md(crystal(), Failing(38, how), settings, 100, output=tmp_path)
    assert "md.restart.npz holds step 30" in str(caught.value)
    assert load_restart(tmp_path / "md.restart.npz").step == 30
    final = md(crystal(), PairCalculator(), settings, 50, output=tmp_path, existing="resume")
    assert final.step == 50 and len(read(final.trajectory, ":")) == 6


@pytest.mark.parametrize(("how", "message"), [("error", "out of memory"), ("nan", "force of atom 5")])
def test_failure_stops_a_relaxation(tmp_path, how, message):
    with pytest.raises(RunError, match=message):
        relax(crystal(), Failing(13, how), RelaxSettings(fmax=1e-8), output=tmp_path)
    assert load_restart(tmp_path / "relax.restart.npz").step == 10
    assert not (tmp_path / "relaxed.xyz").exists()


# ---- what is integrated


class Wells(Calculator):
    """Every atom in an anharmonic well of its own around its first position: many cheap steps."""

    implemented_properties = ["energy", "free_energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if not hasattr(self, "origin"):
            self.origin = atoms.positions.copy()
        x = atoms.positions - self.origin
        energy = float((2 * x**2 + 10 * x**4).sum())
        self.results = {"energy": energy, "free_energy": energy, "forces": -4 * x - 40 * x**3}


def test_nve_conserves_energy_and_error_falls_with_the_square_of_the_time_step(tmp_path):
    spread = []
    for n, dt in enumerate((4.0, 2.0)):
        settings = MDSettings(temperature=300, timestep=dt, log_every=1)
        run = md(crystal(0.0), PairCalculator(), settings, int(400 / dt), output=tmp_path / str(n))
        spread.append(np.std([row["total_energy"] for row in rows(run.log)]))
    assert spread[0] < 1e-3 * 24 * units.kB * 300  # of the kinetic energy of 16 atoms
    assert 3 < spread[0] / spread[1] < 5.5  # exactly 4 for infinitely short steps


@pytest.mark.parametrize("ensemble", ["nvt-bussi", "nvt-nhc", "npt"])
def test_conserved_energy_is_conserved_while_the_total_energy_is_not(tmp_path, ensemble):
    settings = replace(MD, ensemble=ensemble, timestep=2.0, log_every=1)
    log = rows(md(crystal(), PairCalculator(), settings, 100, output=tmp_path).log)
    conserved, total = (np.array([row[name] for row in log]) for name in ("conserved_energy", "total_energy"))
    assert np.ptp(conserved) < 0.02 * np.ptp(total)


@pytest.mark.parametrize("ensemble", ["nvt", "nvt-bussi", "nvt-nhc"])
def test_thermostat_holds_its_temperature(tmp_path, ensemble):
    """16 atoms, mean over 4 ps: the standard error is 400 K sqrt(2/48) / sqrt(4 ps / 2 tau), about 12 K."""
    settings = replace(MD, ensemble=ensemble, timestep=4.0, thermostat_time=40.0, log_every=1)
    log = rows(md(crystal(0.0), Wells(), settings, 1200, output=tmp_path).log)
    assert np.mean([row["temperature"] for row in log[200:]]) == pytest.approx(400, abs=40)


def test_npt_holds_its_pressure(tmp_path):
    """At 8 GPa the mean pressure of the second half is within the noise (fluctuations of 1 GPa) of the target."""
    settings = replace(MD, ensemble="npt", timestep=4.0, pressure=8.0, barostat_time=200.0, log_every=1)
    log = rows(md(crystal(), PairCalculator(), settings, 800, output=tmp_path).log)
    assert abs(log[0]["pressure_GPa"] - 8) > 3
    assert np.mean([row["pressure_GPa"] for row in log[400:]]) == pytest.approx(8.0, abs=1.0)


def test_log_holds_what_ase_computes(tmp_path):
    run = md(crystal(), PairCalculator(), replace(MD, log_every=1), 5, output=tmp_path)
    last = rows(run.log)[-1]
    pressure = -np.trace(run.atoms.get_stress(voigt=False, include_ideal_gas=True)) / 3 / units.GPa
    assert last["potential_energy"] == run.atoms.get_potential_energy()
    assert last["kinetic_energy"] == run.atoms.get_kinetic_energy()
    assert last["temperature"] == run.atoms.get_temperature()
    assert last["pressure_GPa"] == pressure
    assert (last["step"], last["time_fs"], last["volume"]) == (5, 15.0, run.atoms.get_volume())


def test_trajectory_is_read_by_ase_with_results_and_unwrapped_positions(tmp_path):
    run = md(crystal(), PairCalculator(), replace(MD, frame_every=5), 10, output=tmp_path)
    frames = read(run.trajectory, ":")
    assert [frame.info["step"] for frame in frames] == [0, 5, 10]
    assert frames[-1].get_potential_energy() == pytest.approx(run.atoms.get_potential_energy(), abs=1e-6)
    assert np.allclose(frames[-1].positions, run.atoms.positions, atol=1e-7)
    assert np.allclose(frames[-1].get_forces(), run.atoms.get_forces(), atol=1e-7)
    assert np.allclose(frames[-1].get_momenta(), run.atoms.get_momenta(), atol=1e-7)
    assert np.allclose(frames[-1].get_stress(), run.atoms.get_stress(), atol=1e-7)


def test_molecule_runs_without_volume_and_pressure(tmp_path):
    run = md(molecule("CH4"), EMT(), MDSettings(temperature=300, timestep=0.5, log_every=1), 3, output=tmp_path)
    assert rows(run.log)[-1]["pressure_GPa"] is None and rows(run.log)[-1]["volume"] is None


def test_initial_momenta(tmp_path):
    def start(n, atoms, **changes):
        run = md(atoms, PairCalculator(), replace(MD, **changes), 0, output=tmp_path / str(n))
        return run.atoms

    drawn = start(0, crystal())
    assert drawn.get_temperature() == pytest.approx(800) and np.allclose(drawn.get_momenta().sum(0), 0, atol=1e-10)
    assert np.array_equal(start(1, crystal()).get_momenta(), drawn.get_momenta())
    assert not np.array_equal(start(2, crystal(), seed=6).get_momenta(), drawn.get_momenta())
    own = start(3, drawn, ensemble="nvt", initial_temperature=None)
    assert np.array_equal(own.get_momenta(), drawn.get_momenta())
    assert start(4, drawn, initial_temperature=None).get_temperature() == pytest.approx(400)  # nve: temperature draws
    with pytest.raises(ValueError, match="needs a temperature"):
        start(5, crystal(), temperature=None, initial_temperature=None)


def test_caller_keeps_atoms_and_file_structures_are_read(tmp_path):
    atoms = crystal()
    before = atoms.copy()
    md(atoms, PairCalculator(), MD, 3, output=tmp_path / "a")
    relax(atoms, PairCalculator(), RelaxSettings(cell="full"), 3)
    assert atoms == before and atoms.calc is None and not atoms.has("momenta")
    atoms.write(tmp_path / "POSCAR")
    assert md(tmp_path / "POSCAR", PairCalculator(), MD, 1, output=tmp_path / "b").step == 1
    with pytest.raises(FileNotFoundError, match="nothing.cif"):
        relax("nothing.cif", PairCalculator())
    (tmp_path / "bad.xyz").write_text("hello")
    with pytest.raises(RunFileError, match="cannot read a structure"):
        relax(tmp_path / "bad.xyz", PairCalculator())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "nph"}, "'nph'"),
        ({"timestep": 0.0}, "timestep .* 0.0"),
        ({"ensemble": "nvt", "temperature": None}, "nvt needs a temperature .* None"),
        ({"temperature": -5.0}, "-5.0"),
        ({"restart_every": 0}, "restart_every .* 0"),
        ({"pressure": np.nan}, "nan"),
    ],
)
def test_bad_settings_name_the_value(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(MD, **changes)


def test_structures_that_an_ensemble_cannot_treat(tmp_path):
    slab, fixed, rigid = crystal(), crystal(), crystal()
    slab.pbc = (True, True, False)
    fixed.set_constraint(FixAtoms([0]))
    rigid.set_constraint(FixBondLength(0, 1))
    for atoms, ensemble, message in [
        (slab, "npt", "False"),
        (fixed, "npt", "FixAtoms"),
        (rigid, "nvt", "FixBondLength"),
        (Atoms(), "nve", "no atoms"),
    ]:
        with pytest.raises(ValueError, match=message):
            md(atoms, PairCalculator(), replace(MD, ensemble=ensemble), 1, output=tmp_path / "x")


# ---- relaxation


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
@pytest.mark.parametrize("cell", ["isotropic", "full"])
def test_relaxed_crystal_is_the_minimum_of_the_pair_energy(optimizer, cell):
    """The lattice constant is compared with a golden-section search over the energy of the perfect crystal."""
    from scipy.optimize import minimize_scalar

    def energy(a):
        atoms = bulk("Cu", "fcc", a=a)
        atoms.calc = PairCalculator()
        return atoms.get_potential_energy()

    a0 = minimize_scalar(energy, bracket=(3.3, 3.7), tol=1e-10).x
    settings = RelaxSettings(fmax=1e-3, smax=1e-3, cell=cell, optimizer=optimizer)
    result = relax(crystal(), PairCalculator(), settings)
    assert result.converged and result.max_force <= 1e-3 and result.max_stress <= 1e-3
    assert result.max_force == np.linalg.norm(result.atoms.get_forces(), axis=1).max()
    assert (result.atoms.get_volume() / 4) ** (1 / 3) == pytest.approx(a0, rel=1e-5)  # 1e-3 GPa / 3B


def test_pressure_is_reached():
    result = relax(crystal(), PairCalculator(), RelaxSettings(fmax=1e-3, smax=1e-3, cell="full", pressure=5.0))
    stress = result.atoms.get_stress(voigt=False) / units.GPa
    assert result.converged and np.allclose(stress, -5 * np.eye(3), atol=1.1e-3)


def test_unconverged_relaxation_says_so_and_can_go_on(tmp_path):
    settings = RelaxSettings(fmax=1e-4)
    first = relax(crystal(), PairCalculator(), settings, 5, output=tmp_path)
    assert not first.converged and first.steps == 5 and first.max_force > 1e-4
    assert read(tmp_path / "relaxed.xyz").info["converged"] in (False, "F")
    second = relax(crystal(), PairCalculator(), settings, output=tmp_path, existing="resume")
    assert second.converged and second.max_force <= 1e-4
    assert np.allclose(read(tmp_path / "relaxed.xyz").positions, second.atoms.positions, atol=1e-7)
    assert len(read(tmp_path / "relax.xyz", ":")) == second.steps + 1 == len(rows(tmp_path / "relax.csv"))
    with pytest.raises(ValueError, match="optimizer = 'lbfgs'; received 'fire'"):
        relax(crystal(), PairCalculator(), RelaxSettings(optimizer="fire"), output=tmp_path, existing="resume")


def test_constraints_hold_in_a_relaxation():
    atoms = crystal()
    atoms.set_constraint(FixAtoms([2]))
    result = relax(atoms, PairCalculator(), RelaxSettings(fmax=1e-3))
    assert result.converged and np.array_equal(result.atoms.positions[2], atoms.positions[2])


def test_bad_relaxations_name_the_value():
    for changes in ({"cell": "shape"}, {"optimizer": "newton"}, {"fmax": 0.0}, {"smax": -1.0}, {"restart_every": 0}):
        with pytest.raises(ValueError, match=str(next(iter(changes.values())))):
            RelaxSettings(**changes)
    with pytest.raises(ValueError, match="periodic"):
        relax(molecule("H2O"), PairCalculator(), RelaxSettings(cell="full"))
    with pytest.raises(ValueError, match="no atoms"):
        relax(Atoms(), PairCalculator())


def test_calculator_without_stress_is_refused_with_its_own_words():
    atoms = crystal()
    calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((16, 3)))
    with pytest.raises(RunError, match="stress"):
        relax(atoms, calc, RelaxSettings(cell="full"))
