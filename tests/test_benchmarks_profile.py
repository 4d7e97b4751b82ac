"""benchmarks/profile_step.py runs, its shares add up, and operations.py counts what can be counted by hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ase.build import bulk

from ase_equinn import NequIP, SchNet
from ase_equinn.graph import graph_and_vectors
from ase_equinn.irreps import Irreps
from ase_equinn.ops.paths import ConvPaths
from ase_equinn.ops.product_table import ProductTable
from ase_equinn.programs import make_program

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def operations(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import operations

    return operations


def test_profile_of_a_model():
    """Every kernel has a line, the shares add up to all, and the phases to a step."""
    command = [sys.executable, str(FOLDER / "profile_step.py"), "schnet", "--rounds", "1", "--seconds", "0.2"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^  ([a-z_ ]+?) +(\d+) +[\d.]+ +([\d.]+)%", done.stdout, re.MULTILINE)
    shares = {name: (int(count), float(share)) for name, count, share in lines}
    count, share = shares.pop("all kernels")
    assert share == 100 and sum(part for _, part in shares.values()) == pytest.approx(100, abs=1)
    assert count == sum(number for number, _ in shares.values())
    assert {"conv", "conv backward", "linear", "linear backward", "split", "collect"} <= set(shares)
    step = done.stdout[done.stdout.index("a step") :].split(";")[0]
    assert sum(map(float, re.findall(r"(-?[\d.]+)%", step))) == pytest.approx(100, abs=1)


def test_parts_of_a_program():
    """Calls stand in the order of the plan; running them alone changes nothing for the program."""
    torch.manual_seed(0)
    atoms = bulk("Si", cubic=True)
    model = NequIP([14], 4.0, 17.0, irreps_hidden="4x0e+4x1o").requires_grad_(False)
    graph, vectors = graph_and_vectors(atoms, 4.0)
    program, index = make_program(model, (14,), torch.float32)
    inputs = index(graph.numbers), graph.row_ptr, graph.edge_index[1], vectors
    before, parts = program(*inputs), program.parts(*inputs)
    assert [call.name for call in parts.calls][0] == "split" and parts.calls[-1].name == "collect"
    steps = list(dict.fromkeys(id(call.step) for call in parts.calls if call.step is not None))
    assert steps == [id(step) for step in program.plan.steps]
    for k in range(len(parts.calls)):
        parts.alone(k, 2)
    parts.whole()
    assert torch.equal(program(*inputs).forces, before.forces)


def test_operations_of_linear_maps_and_edges(operations):
    """By hand, for SchNet's two atom-wise maps before its first convolution and after its last."""
    n, n_edges, n_channels = 8, 8 * 28, 6
    model = SchNet([14], 5.0, n_channels=n_channels, n_layers=1).requires_grad_(False)
    program, _ = make_program(model, (14,), torch.float64)
    sizes, counts = operations.Sizes(n, n_edges, 8), {}
    for call in program.calls(1)[0]:
        counts.setdefault(call.name, []).append(operations.cost(call, sizes))
    forward = [c for c in counts["linear"]][:4]
    assert [c.flop for c in forward] == [2 * n * a * b for a, b in ((6, 6), (6, 6), (6, 3), (3, 1))]
    assert forward[0].bytes == 8 * (n * 12 + 6 * 6 + 6) == forward[0].moved
    (split,) = counts["split"]
    assert (split.flop, split.bytes) == (0, n_edges * 3 * (8 + 8) + 8 * n)
    (conv,), table = counts["conv"], model.layers[0].table()
    geometry = 47  # of an edge
    assert conv.flop == n_edges * (geometry + n_channels * (10 + 2))
    assert conv.moved - conv.bytes == 8 * (
        6 * n_edges * n_channels + n_edges * n_channels - table.values.numel() - n_channels
    )


@pytest.mark.parametrize(
    "irreps_in, lmax, irreps_out, forward, backward",
    [
        ("1x0e", 0, "1x0e", 12, 24),  # w, and w x added; w, w', g x and g w
        (
            "1x0e",
            1,
            "1x1o",
            10 + 1 + 3 * 2,
            20 + (5 + 2 + 2) + (1 + 6),
        ),  # w, w x, three products; u, u x, u w; w x, three
        ("1x1o", 1, "1x0e", 10 + 3 + 3 * 2, 20 + (3 + 6 + 6) + (3 + 6)),  # the same turned round
        ("1x1o", 1, "1x1e", 10 + 3 + 6 * 2, 20 + (9 + 6 + 6) + (3 + 12)),  # a cross product has six terms
    ],
)
def test_operations_of_one_path(operations, irreps_in, lmax, irreps_out, forward, backward):
    paths = ConvPaths(Irreps(irreps_in), lmax, Irreps(irreps_out))
    assert len(paths.paths) == 1
    for flag, expected in ((False, forward), (True, backward)):
        of_edge, of_centre = operations.conv_flop(paths, flag)
        assert of_edge - operations._geometry(paths, flag) == expected and of_centre == 0


def test_operations_of_a_square(operations):
    """y = W_1 x + W_2 x^2 of scalars: x^2 c and two sums; dx = W_1 g + 2 c W_2 g x as the kernel takes both factors."""
    table = ProductTable(Irreps("5x0e"), Irreps("5x0e"), 2)
    assert operations.product_flop(table, False) == 5 * (1 + 2 + 2 * 2)
    assert operations.product_flop(table, True) == 5 * (2 + 3 + 2 * 2)
