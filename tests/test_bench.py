"""`equinn bench` counts steps, atoms and shares right; no test asserts how fast this machine is."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from typer.testing import CliRunner

from ase_equinn import NequIP, Potential, SchNet, bench as module
from ase_equinn.bench import as_dict, bench, bench_table, evaluation_of, plot_bench, supercell, vibration
from ase_equinn.cli import app
from ase_equinn.cuda_graph import Replay


@pytest.fixture(scope="module")
def potential() -> Potential:
    torch.manual_seed(0)
    return Potential(NequIP((14,), 4.0, 17.0, n_layers=1, irreps_hidden="4x0e", lmax=1, radial_mlp=[8]))


def test_rows_are_consistent(potential):
    """Sizes ascend and are reached, rates agree with one another, the phases make up the whole."""
    found = bench(potential, sizes=(60, 8, 9), seconds=0.05)
    assert [row.n_atoms for row in found.rows] == [8, 16, 64]
    assert (found.backend, found.device, found.dtype) == ("llvm", "cpu", "float32")
    assert found.threads == torch.get_num_threads() and "Z = 14" in found.potential
    for row in found.rows:
        assert row.n_steps % 5 == 0 and row.n_steps > 0
        assert row.us_per_atom * row.n_atoms == pytest.approx(1e3 * row.ms_per_step)
        assert row.neighbors + row.model + row.rest == pytest.approx(1.0)
        assert 0 < row.neighbors < 1 and 0 < row.model < 1 and 0 < row.rest < 1
        assert row.memory_mb > 20  # python and torch alone take more
    assert found.rows[0].memory_mb <= found.rows[-1].memory_mb


def test_time_is_wall_clock_over_steps(monkeypatch):
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(module, "perf_counter", lambda: next(clock))
    calls = []
    assert module._time(lambda: calls.append(0), 6) == 0.5 and len(calls) == 6


def test_what_evaluates_is_named(potential):
    """Native programs where a model allows them: a term that they do not know runs in torch, and is named."""
    found = bench(potential, sizes=[8], seconds=0.02, backend="reference")
    assert (found.backend, found.evaluation) == ("reference", "torch")
    found = bench(potential, sizes=[8], seconds=0.02)
    assert (found.backend, found.evaluation) == ("llvm", "native programs")
    table = bench_table(found)
    assert "native programs (llvm)" in table.title
    found = bench(Potential([potential.models[0], PairModel()]), sizes=[8], seconds=0.02)
    assert found.evaluation == "native programs, but for PairModel in torch"


class PairModel(torch.nn.Module):
    """(1 - r/c)^3 for every pair, summed by torch's own functions."""

    species, cutoff = (14,), 3.0

    def forward(self, graph, vectors):
        energy = (1 - vectors.norm(dim=1) / self.cutoff) ** 3
        return energy.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], energy)


def test_a_replay_on_cuda_is_named():
    replay = Replay(Potential(PairModel()))
    assert evaluation_of(replay) == "replays on CUDA"
    replay.problem = "too little memory"
    assert evaluation_of(replay) == "torch on CUDA (too little memory)"


def test_supercell_grows_along_its_shortest_direction():
    silicon = bulk("Si", cubic=True)
    assert [len(supercell(silicon, n)) for n in (1, 8, 9, 64, 65, 216)] == [8, 8, 16, 64, 96, 216]
    cube = supercell(silicon, 216)
    assert np.allclose(cube.cell.lengths(), 3 * silicon.cell.lengths())
    slab = fcc111("Cu", (1, 1, 3), vacuum=5.0)
    large = supercell(slab, 40)
    assert len(large) >= 40 and large.cell.lengths()[2] == slab.cell.lengths()[2]
    assert len(supercell(molecule("H2O"), 100)) == 3


def test_vibration_moves_atoms_as_at_300_kelvin():
    """Every step moves and asks for forces; the rms speed at the start is sqrt(kT/m) along each axis."""
    atoms, asked = bulk("Si", cubic=True).repeat(4), []
    start, last = atoms.positions.copy(), atoms.positions.copy()
    atoms.get_forces = lambda: asked.append("forces")
    atoms.get_stress = lambda: asked.append("stress")
    step = vibration(atoms, np.random.default_rng(0))
    for k in range(60):
        step()
        moved = atoms.positions - last
        assert np.abs(moved).max() > 0
        if k == 0:  # sqrt(1.380649e-23 J/K * 300 K / (28.085 * 1.66053907e-27 kg)) = 298.0 m/s = 0.002980 A/fs
            assert np.sqrt((moved**2).mean()) == pytest.approx(0.002980, rel=0.05)  # 1536 random numbers: 2 % scatter
        last = atoms.positions.copy()
    assert asked == ["forces", "stress"] * 60
    assert np.abs(atoms.positions - start).max() < 0.3  # it swings and does not drift away


def test_molecule_of_its_own_size():
    torch.manual_seed(0)
    model = SchNet((1, 8), 3.0, n_channels=4, n_layers=1, n_basis=8)
    (row,) = bench(Potential(model), molecule("H2O"), sizes=(8, 64), seconds=0.02).rows
    assert row.n_atoms == 3


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(sizes=[]), r"sizes must be numbers of atoms .* got \[\]"),
        (dict(sizes=[8, 0]), r"got \[8, 0\]"),
        (dict(sizes=[10**9]), "1000000000"),
        (dict(seconds=0.0), "seconds must be a positive number, got 0.0"),
        (dict(seconds=float("nan")), "got nan"),
        (dict(backend="cuda"), "cuda"),
        (dict(structure=Atoms("Cu", cell=[3, 3, 3], pbc=True)), "29"),
    ],
)
def test_bad_input(potential, bad, message):
    with pytest.raises(ValueError, match=message):
        bench(potential, **bad)


def test_command_writes_table_json_and_plot(potential, tmp_path):
    potential.save(tmp_path / "tiny")
    options = ["--sizes", "8,64", "--seconds", "0.02", "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png"]
    command = ["bench", str(tmp_path / "tiny"), *map(str, options)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    for fact in ("us/atom/step", "llvm", "neighbours", "memory", "64"):
        assert fact in result.stdout
    report = json.loads((tmp_path / "b.json").read_text())
    assert [row["n_atoms"] for row in report["rows"]] == [8, 64] and report["backend"] == "llvm"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(app, ["bench", str(tmp_path / "tiny"), "--sizes", "8,many"])
    assert refused.exit_code == 2 and "'8,many'" in refused.output


def test_plot_shows_every_size(potential):
    found = bench(potential, sizes=(8, 16), seconds=0.02)
    cost, shares = plot_bench(found).axes
    assert cost.lines[0].get_xydata().tolist() == [[row.n_atoms, row.us_per_atom] for row in found.rows]
    heights = np.array([[bar.get_height() for bar in bars] for bars in shares.containers])
    np.testing.assert_allclose(heights.sum(0), 100.0)
    assert json.loads(json.dumps(as_dict(found)))["rows"][0]["n_atoms"] == 8
