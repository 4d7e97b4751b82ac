"""The i-PI client: beside ASE's own server, and serving a real i-PI run that is killed and restarted."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.socketio import SocketIOCalculator
from ase.io import read
from typer.testing import CliRunner

from ase_equinn import EquiCalculator, Potential, SchNet
from ase_equinn.cli import app
from ase_equinn.engines.ipi import serve
from ase_equinn.engines.ipi_frames import _run_both
from ase_equinn.runfiles import RunError

EXAMPLE = Path(__file__).parents[1] / "examples" / "pimd_ethanol.xml"
real = pytest.mark.skipif(
    importlib.util.find_spec("ipi") is None, reason='i-PI is not installed: pip install "ase_equinn[ipi]"'
)


@pytest.fixture(scope="module")
def potential(tmp_path_factory) -> Path:
    """An untrained network with energies of some meV."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SchNet((1, 6, 8, 14), 4.0, n_channels=8, n_layers=1, n_basis=8)
    folder = tmp_path_factory.mktemp("potential") / "tiny"
    Potential(model, scale=0.01).save(folder)
    return folder


@pytest.fixture
def name():
    """A socket name of this test's own."""
    name = f"test_{os.getpid()}_{time.monotonic_ns()}"
    yield name
    Path(f"/tmp/ipi_{name}").unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def rattled(atoms, seed=0):
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("structure", [bulk("Si", cubic=True), molecule("CH3CH2OH")])
def test_a_server_gets_the_calculators_numbers(potential, name, tcp, structure):
    """Through Bohr and Hartree and back: 1e-12 relative."""
    port = free_port() if tcp else None
    place = dict(port=port) if tcp else dict(unixsocket=name)
    calculator = EquiCalculator(potential, dtype="float64")
    with ThreadPoolExecutor() as pool:
        server = SocketIOCalculator(**place, timeout=20)
        with server:
            client = pool.submit(
                serve, potential, structure, "localhost" if tcp else name, port, wait=20, dtype="float64"
            )
            for seed in range(3):
                atoms = rattled(structure, seed)
                server.calculate(atoms, ["energy", "forces"], ["positions", "cell"])
                calculator.calculate(atoms, ["stress"] if atoms.pbc.all() else ["forces"])
                for key in ("energy", "forces", "stress"):
                    if key in calculator.results:
                        expected = calculator.results[key]
                        np.testing.assert_allclose(server.results[key], expected, rtol=1e-10, atol=1e-12, err_msg=key)
            server.server.protocol.end()  # EXIT, as i-PI says; ASE's server would just hang up
        assert client.result(timeout=20) == 3
    assert structure.calc is None


class Server:
    """The first steps of a server: accepts one client and sends one configuration, which may be nonsense."""

    def __init__(self, name: str):
        Path(f"/tmp/ipi_{name}").unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(f"/tmp/ipi_{name}")
        self.socket.listen(1)
        self.socket.settimeout(20)

    def send(self, positions, cell=np.eye(3) * 20.0) -> None:
        self.client, _ = self.socket.accept()
        self.client.sendall(b"POSDATA".ljust(12) + cell.tobytes() + np.linalg.inv(cell).tobytes())
        self.client.sendall(np.int32(len(positions)).tobytes() + np.asarray(positions, dtype=np.float64).tobytes())

    def close(self, goodbye=b"") -> None:
        if goodbye:
            self.client.sendall(goodbye)
        self.client.close()
        self.socket.close()


def failure(potential, name, structure, positions, cell=np.eye(3) * 20.0) -> str:
    with ThreadPoolExecutor() as pool:
        server = Server(name)
        client = pool.submit(serve, potential, structure, name, wait=20)
        server.send(positions, cell)
        error = client.exception(timeout=20)
        server.close()
    assert isinstance(error, RunError), error
    return str(error)


def test_what_a_server_sends_is_checked(potential, name):
    water = molecule("H2O")
    wrong = water.positions.copy()
    wrong[1, 2] = np.nan
    assert "a cell or positions that are not finite" in failure(potential, name, water, wrong)
    assert "sent 5 atoms, the structure has 3" in failure(potential, name, water, np.zeros((5, 3)))
    text = failure(potential, name, water, np.zeros((3, 3)))
    assert f"evaluation 1 for UNIX socket /tmp/ipi_{name} failed: atoms" in text and "apart" in text


def test_a_lost_connection_is_made_again(potential, name):
    water, told = molecule("H2O"), []
    with ThreadPoolExecutor() as pool:
        server = Server(name)
        client = pool.submit(serve, potential, water, name, wait=20, report=told.append)
        server.send(water.positions / 0.529)
        server.client.sendall(b"STATUS".ljust(12))
        assert server.client.recv(12) == b"HAVEDATA".ljust(12)
        server.close()  # as a server that is killed
        server = Server(name)
        server.send(water.positions / 0.529)
        server.close(b"EXIT".ljust(12))
        assert client.result(timeout=20) == 2
    assert [line.split()[0] for line in told] == ["connected", "lost", "connected"]


def test_a_server_that_never_comes_back_is_an_error(potential, name):
    water = molecule("H2O")
    with ThreadPoolExecutor() as pool:
        server = Server(name)
        client = pool.submit(serve, potential, water, name, wait=0.3)
        server.send(water.positions / 0.529)
        server.close()
        text = str(client.exception(timeout=20))
    assert f"nobody listens at UNIX socket /tmp/ipi_{name}: a server that was killed left the file; remove" in text
    assert "after 1 evaluations" in text


def refused(*arguments) -> str:
    """The one line with which the command refuses."""
    result = CliRunner().invoke(app, ["ipi", *map(str, arguments)], env={"NO_COLOR": "1"})
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_the_command_refuses_in_one_line(potential, name, tmp_path):
    molecule("H2O").write(tmp_path / "water.xyz")
    Atoms("Au").write(tmp_path / "gold.xyz")
    (tmp_path / "broken.xyz").write_text("1\n\nH nan 0 0\n")
    common = ("--potential", potential, "--socket", name, "--wait", 0)
    text = refused(tmp_path / "water.xyz", *common)
    assert f"no server at UNIX socket /tmp/ipi_{name}: start i-pi first" in text
    tcp = (*common[:2], "--socket", "localhost", "--port", 1, *common[4:])
    assert "no server at localhost:1: " in refused(tmp_path / "water.xyz", *tcp)
    assert "(Au); supported: H, C, O, Si" in refused(tmp_path / "gold.xyz", *common)
    assert "position of atom 0 is not finite" in refused(tmp_path / "broken.xyz", *common)
    assert "no structure file" in refused(tmp_path / "none.xyz", *common)
    text = refused(tmp_path / "water.xyz", *common, "--port", 70000)
    assert "port must be a number from 1 to 65535, got 70000" in text
    assert "seconds, got -1" in refused(tmp_path / "water.xyz", *common[:4], "--wait", -1)


def rows(folder: Path) -> np.ndarray:
    """Complete rows of i-PI's properties so far."""
    path = folder / "pimd.out"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [line.split() for line in lines if line.endswith("\n") and line[0] != "#"]
    return np.array(found, dtype=float).reshape(-1, 6)


class Run:
    """A real i-PI run of the example's input in a folder, with clients; all of it ends with the `with` block."""

    def __init__(self, folder: Path, potential: Path, name: str, steps: int):
        self.folder, self.processes = folder, []
        text = EXAMPLE.read_text().replace("> 1000 <", f"> {steps} <").replace("> ethanol <", f"> {name} <")
        (folder / "input.xml").write_text(text)
        box = "# CELL(abcABC): 30 30 30 90 90 90 cell{angstrom} positions{angstrom}"
        molecule("CH3CH2OH").write(folder / "start.xyz", format="xyz", comment=box)
        code = "from ase_equinn.cli import main; main()"
        options = ["--potential", str(potential), "--socket", name, "--wait", "40"]
        self.client = [sys.executable, "-c", code, "ipi", "start.xyz", *options]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def start(self, command) -> subprocess.Popen:
        process = subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        self.processes.append(process)
        return process

    def server(self, file: str) -> subprocess.Popen:
        program = shutil.which("i-pi", path=str(Path(sys.executable).parent)) or shutil.which("i-pi")
        return self.start([sys.executable, program, file])


def environment() -> dict:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@real
def test_killed_i_pi_restarts_and_the_clients_find_it_again(potential, name, tmp_path):
    """Path integrals with 4 beads and two clients; what was written before the kill stays and is continued."""
    with Run(tmp_path, potential, name, 40) as run:
        server = run.server("input.xml")
        clients = [run.start(run.client) for _ in range(2)]
        end = time.monotonic() + 120
        while len(rows(tmp_path)) < 13 and time.monotonic() < end and server.poll() is None:
            time.sleep(0.002)
        server.kill()
        server.wait()
        before = rows(tmp_path)
        assert 13 <= len(before) < 40
        assert len(read(tmp_path / "pimd.pos_3.xyz", ":")) >= 1
        Path(f"/tmp/ipi_{name}").unlink()  # what a killed server leaves, and the next one does not accept
        server = run.server("pimd.restart")
        assert server.wait(timeout=120) == 0
        said = [client.communicate(timeout=120)[0] for client in clients]
        assert [client.returncode for client in clients] == [0, 0], said
    for text in said:
        assert text.count("connected to UNIX socket") >= 2 and "lost UNIX socket" in text
        assert int(text.split(" evaluations served")[0].split()[-1]) > 10
    after = np.concatenate([before, rows(tmp_path)])
    assert set(after[:, 0]) == set(range(41))
    assert np.ptp(rows(tmp_path)[:, 5]) < 1e-3  # eV, the conserved energy


def test_neither_of_two_processes_survives_a_failure(tmp_path):
    """What `equinn parity` starts for i-PI: a client that fails, a server that fails, one that hangs."""
    waits = [sys.executable, "-c", "import time; time.sleep(60)"]
    fails = [sys.executable, "-c", "print('no such potential'); raise SystemExit(2)"]
    quits = [sys.executable, "-c", "pass"]
    start = time.monotonic()
    with pytest.raises(RunError, match="the client ended with status 2: no such potential"):
        _run_both(waits, fails, tmp_path, 30)
    with pytest.raises(RunError, match="ended with status 2: no such potential"):
        _run_both(fails, waits, tmp_path, 30)
    with pytest.raises(RunError, match="ended with status 0"):
        _run_both(quits, waits, tmp_path, 30)
    with pytest.raises(RunError, match="no results within 0.2 s"):
        _run_both(waits, waits, tmp_path, 0.2)
    assert time.monotonic() - start < 30
