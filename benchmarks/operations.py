"""What each call of a program must at least do: additions and multiplications, and bytes moved.

Counted from the model's tables (paths, couplings, sizes), not from the kernels: a kernel that does more has a lower rate.
Bytes are those of every number once, read or written, twice where a number is added to. Moved bytes count what a convolution
takes for every edge each time: six rows of the radial table, its neighbour's features and their gradient.
"""

from __future__ import annotations

from typing import NamedTuple

from ase_equinn.irreps import clebsch_gordan
from ase_equinn.ops.calls import Call
from ase_equinn.ops.conv_variants import entries
from ase_equinn.ops.paths import ConvPaths
from ase_equinn.ops.plan import Step
from ase_equinn.ops.product_kernels import terms_of
from ase_equinn.ops.product_table import ProductTable

INTERPOLATION = 10  # a polynomial of degree 5, by five multiply-adds
_INDEX, _DOUBLE = 8, 8  # bytes
# Operations of a function with its e^x, and of its derivative
_FUNCTIONS = {"silu": (22, 26), "tanh": (22, 26), "softplus": (46, 22), "abs": (1, 1), "add": (1, 0), "scale": (1, 1)}


class Cost(NamedTuple):
    flop: float = 0.0
    bytes: float = 0.0
    moved: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other)))


class Sizes(NamedTuple):
    """atoms, edges, and bytes of a number."""

    n: int
    n_edges: int
    number: int


def cost(call: Call, sizes: Sizes) -> Cost:
    """Of one call of a program, for all atoms."""
    step, of_edges = call.step, _EDGES.get(call.name)
    if step is None:
        n_bytes = _bytes_of_edges(call.name, sizes)
        return Cost(of_edges[0] * sizes.n_edges, n_bytes, n_bytes)
    if "conv" in step.kind:
        return _conv(step, sizes)
    if "product" in step.kind:
        flop = product_flop(step.fixed["table"], step.backward)
        weights = sum(weight.numel() for weight in step.fixed["weights"])
    else:
        flop = _flop(step)
        weights = sum(step.fixed[name].numel() for name in ("weight", "bias") if step.fixed.get(name) is not None)
    n_bytes = sizes.number * (sizes.n * (_written(step) + sum(view.size for view in step.reads)) + weights)
    found = Cost(sizes.n * flop, n_bytes, n_bytes)
    return Cost(*(part / 2 for part in found)) if step.kind == "add" else found  # two calls


# what every atom needs


def _written(step: Step) -> int:
    """Numbers written, twice where they are added to."""
    flags = step.fixed.get("accumulate", False)
    flags = [flag for flag in flags if flag is not None] if isinstance(flags, tuple) else [flags] * len(step.writes)
    return sum(view.size * (1 + flag) for view, flag in zip(step.writes, flags))


def _flop(step: Step) -> float:
    kind, fixed = step.kind, step.fixed
    size = (step.writes or step.reads)[0].size
    if kind == "linear":
        return 2 * step.reads[0].dim * step.reads[0].n * step.writes[0].n
    if kind.startswith("unary"):
        return size * _FUNCTIONS[fixed["function"]][step.backward]
    if kind == "copy":
        return size * (fixed["accumulate"] + (fixed["factor"] != 1.0))
    if kind in ("add", "gate", "divide", "total"):
        return size
    if kind in ("gate backward", "divide backward"):
        return step.reads[2].size * 3
    return 0.0  # gather, clear, and what has not been counted


def product_flop(table: ProductTable, backward: bool) -> float:
    """Of an atom. The backward pass begins with the values that it needs of the forward pass."""
    inner = {node.left for node in table.nodes}
    total = sum(2 * (2 * table.nodes[k].l + 1) for rows in table.outputs for k in rows)
    for k in range(table.n_inputs, len(table.nodes)):
        for uses in terms_of(table, k).values():
            value = 1 + 2 * len(uses)
            total += value if not backward else 2 * len(uses) + 3 + value * (k in inner)
    return total * table.n_channels


# what every edge needs

# by name: operations, bytes that the network's numbers and others take, of an edge
_EDGES = {
    "split": (0, 3, 3 * _DOUBLE),
    "collect": (24, 3, 3 * _DOUBLE + _INDEX),
    "neighbour_index": (0, 0, 2 * _INDEX),
    "pair_row": (0, 0, 2 * _INDEX),
}


def _bytes_of_edges(name: str, sizes: Sizes) -> float:
    _, numbers, others = _EDGES[name]
    per_atom = 15 * _DOUBLE if name == "collect" else _INDEX  # forces are read and written, virials written
    return sizes.n_edges * (numbers * sizes.number + others) + sizes.n * per_atom


def _products(paths: ConvPaths) -> list[tuple[int, int, int, int]]:
    """Per path: channels, components of x, products with numbers of the edge, and products that can wait for the centre.

    Either the matrix sum_m C Y_m meets x, or all Y_m x come first and C later: what takes fewer products an edge.
    """
    out = []
    for path, matrix in entries(paths).items():
        pairs = {(entry.m1, m) for entry in matrix for m, _ in entry.terms}
        later = sum(len(entry.terms) for entry in matrix) if len(pairs) < len(matrix) else 0
        out.append((path.mul, 2 * paths.irreps_in[path.i_in].l + 1, min(len(pairs), len(matrix)), later))
    return out


def conv_flop(paths: ConvPaths, backward: bool, x_gradient: bool = True) -> tuple[float, float]:
    """Of an edge, and of a centre.

    Forward an edge takes for each path and channel w(r), then w x, then one multiply-add for each product; where Y is 1
    the products are those with w. Backward it takes w and w', the gradients u by w x, of that w and x, and those of Y.
    """
    edge = centre = 0.0
    for (mul, dim, products, later), path in zip(_products(paths), paths.paths):
        plain = path.l_sh == 0
        if not backward:
            edge += mul * (INTERPOLATION + (2 * dim if plain else dim + 2 * products))
        else:
            u = 0 if plain else 2 * products - dim
            edge += mul * (2 * INTERPOLATION + u + 2 * dim + 2 * dim * x_gradient)
            edge += 0 if plain else mul * (dim + 2 * products)
        centre += mul * 2 * later
    return edge + _geometry(paths, backward), centre


def _geometry(paths: ConvPaths, backward: bool) -> float:
    """Of an edge, whatever the channels: lengths, directions, six Hermite functions, harmonics and their combinations."""
    matrices = entries(paths).values()
    combinations = sum(2 * len(entry.terms) - 1 for matrix in matrices for entry in matrix if len(entry.terms) > 1)
    couplings = [clebsch_gordan(l, 1, l + 1) for l in range(1, paths.lmax)]
    n_couplings = sum((abs(coupling) > 1e-12).sum() for coupling in couplings)
    harmonics = 3 * (n_couplings + (paths.lmax > 0)) - sum(coupling.shape[2] for coupling in couplings)
    if not backward:
        return 47 + harmonics + combinations
    return 110 + harmonics + 5 * n_couplings + 2 * combinations


def _conv(step: Step, sizes: Sizes) -> Cost:
    paths, table, rows = (step.fixed[name] for name in ("paths", "table", "rows"))
    n_in = 0 if rows is not None else len(paths.irreps_in)
    x_gradient = step.backward and bool(step.writes)
    edge, centre = conv_flop(paths, step.backward, x_gradient)
    every = sizes.n_edges * (6 * paths.n_weights + paths.irreps_in.dim * (1 + 2 * x_gradient))
    features = sum(row.numel() for row in rows) if n_in == 0 else sizes.n * sum(view.size for view in step.reads[:n_in])
    once = min(table.values.numel(), sizes.n_edges * 6 * paths.n_weights) + features * (1 + 2 * x_gradient)
    gradient = (3 if step.fixed["first"] else 6) if step.backward else 0
    others = sizes.n_edges * (3 + gradient) + sizes.n * sum(view.size for view in step.reads[n_in:])
    others += 0 if step.backward else sizes.n * sum(view.size for view in step.writes)
    indices = sizes.n_edges * _INDEX * (1 + (table.first is not None)) + sizes.n * _INDEX
    flop = edge * sizes.n_edges + centre * sizes.n
    return Cost(flop, (once + others) * sizes.number + indices, (every + others) * sizes.number + indices)
