"""The couplings of a symmetric product: linearly independent equivariant polynomials, each made of simpler ones."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from ..irreps import Irreps, clebsch_gordan

_N_POINTS = 400  # at which polynomials are compared; (2L+1) times as many numbers must exceed the couplings of an irrep


class Node(NamedTuple):
    """A polynomial that transforms like (l, p): factors in ascending order, coupled from the left."""

    l: int  # noqa: E741
    p: int
    factors: tuple[int, ...]  # blocks of the input
    left: int  # node that holds the factors but the last; -1 for an input block

    @property
    def right(self) -> int:
        return self.factors[-1]


class ProductTable:
    """The couplings of one symmetric product.

    Args:
        irreps_in: of the features, one term per irrep, all of one multiplicity.
        irreps_out: of the result, one term per irrep; multiplicities are ignored.
        correlation: highest number of factors, >= 1.

    Attributes:
        nodes: polynomials, each after those that it is made of; the first are the input blocks.
        outputs: per term of irreps_out the nodes that are summed; the weights have one row for each.

    Raises:
        ValueError: different multiplicities, or a term of irreps_out that no product reaches, with the value.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, correlation: int):
        self.irreps_in, self.correlation = Irreps(irreps_in), correlation
        muls = {mul for mul, _, _ in self.irreps_in}
        if len(muls) != 1 or len(self.irreps_in.simplify()) != len(self.irreps_in):
            raise ValueError(
                f"ProductTable: one term per irrep, all of one multiplicity, are needed, got {self.irreps_in}"
            )
        if correlation < 1:
            raise ValueError(f"ProductTable: correlation must be at least 1, got {correlation}")
        self.n_channels = muls.pop()
        self.irreps_out = Irreps([(self.n_channels, l, p) for _, l, p in Irreps(irreps_out)])
        nodes = _independent_nodes(self.irreps_in, {(l, p) for _, l, p in self.irreps_out}, correlation)
        self.nodes, self.outputs = _needed(nodes, self.irreps_in, self.irreps_out)
        for term, rows in zip(self.irreps_out, self.outputs):
            if not rows:
                raise ValueError(f"ProductTable: no product of {self.irreps_in} gives {term}")
        self._couplings: dict[tuple, list[Tensor]] = {}

    @property
    def n_inputs(self) -> int:
        return len(self.irreps_in)

    def coupling(self, node: Node) -> np.ndarray:
        """(2 l_left + 1, 2 l_right + 1, 2 l + 1), component normalisation."""
        return _coupling(self.nodes[node.left].l, self.irreps_in[node.right].l, node.l)

    def couplings(self, like: Tensor) -> list[Tensor]:
        """Per coupled node the matrix (2 l + 1, product of the two dimensions that are coupled)."""
        key = (like.dtype, like.device)
        if key not in self._couplings:
            arrays = [self.coupling(node) for node in self.nodes[self.n_inputs :]]
            self._couplings[key] = [torch.from_numpy(a.reshape(-1, a.shape[2]).T.copy()).to(like) for a in arrays]
        return self._couplings[key]

    def weights_from(self, i_out: int, couplings: Sequence[np.ndarray], weights: Sequence[Tensor]) -> Tensor:
        """The weights of output `i_out` that give the same function as couplings from elsewhere with their weights.

        Args:
            i_out: term of irreps_out.
            couplings: for 1, 2, ... factors an array (2l+1, D, ..., D, K), or without the first axis if l = 0; D is the
                dimension of irreps_in with multiplicity 1. They need not be symmetric or independent.
            weights: for each of them (n_species, K, C).

        Returns:
            (n_species, rows of this output, C), float64.

        Raises:
            ValueError: couplings that are not equivariant, so that no weights give them.
        """
        _, l, _ = self.irreps_out[i_out]
        points = _points(self.irreps_in)
        values = _values(self.nodes, self.irreps_in, points)
        basis = np.stack([values[k].ravel() for k in self.outputs[i_out]], axis=1)
        x, total = np.concatenate(points, axis=0), 0.0
        for array, weight in zip(couplings, weights):
            array = np.asarray(array, dtype=np.float64).reshape(
                2 * l + 1, *[len(x)] * (np.ndim(array) - 1 - (l > 0)), -1
            )
            given = _polynomials(array, x)
            solution = np.linalg.lstsq(basis, given, rcond=1e-10)[0]
            error, scale = np.abs(basis @ solution - given).max(), np.abs(given).max()
            if error > 1e-5 * scale:
                raise ValueError(
                    f"couplings of {array.ndim - 2} factors to {self.irreps_out[i_out]} are not equivariant: they "
                    f"differ by {error:.3g} from all couplings of this irrep, at a size of {scale:.3g}"
                )
            total = total + torch.einsum("kq,sqc->skc", torch.from_numpy(solution), weight.detach().double())
        return total

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_couplings": {}}


def _coupling(l_left: int, l_right: int, l: int) -> np.ndarray:  # noqa: E741
    return clebsch_gordan(l_left, l_right, l) * np.sqrt(2 * l + 1)


def _points(irreps: Irreps) -> list[np.ndarray]:
    """Random features, per block (2l+1, n_points); the same in every call."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal((2 * l + 1, _N_POINTS)) for _, l, _ in irreps]


def _value(left: np.ndarray, right: np.ndarray, l: int) -> np.ndarray:  # noqa: E741
    coupling = _coupling(len(left) // 2, len(right) // 2, l)
    return np.einsum("abm,an,bn->mn", coupling, left, right, optimize=True)


def _values(nodes: Sequence[Node], irreps: Irreps, points: list[np.ndarray]) -> list[np.ndarray]:
    values = list(points)
    for node in nodes[len(irreps) :]:
        values.append(_value(values[node.left], points[node.right], node.l))
    return values


def _polynomials(coupling: np.ndarray, x: np.ndarray) -> np.ndarray:
    """coupling (2l+1, D, ..., D, K) applied to as many copies of x (D, n): ((2l+1) n, K)."""
    out = np.einsum("m...dk,dn->m...kn", coupling, x)
    while out.ndim > 3:
        out = np.einsum("m...dkn,dn->m...kn", out, x)
    return out.transpose(0, 2, 1).reshape(-1, coupling.shape[-1])


def _independent_nodes(irreps: Irreps, wanted: set[tuple[int, int]], correlation: int) -> list[Node]:
    """Input blocks, then for 2, 3, ... factors a basis of all polynomials; of the highest degree those wanted only."""
    points = _points(irreps)
    nodes, values = [Node(l, p, (i,), -1) for i, (_, l, p) in enumerate(irreps)], list(points)
    level = range(len(nodes))
    for n_factors in range(2, correlation + 1):
        first, bases = len(nodes), {}
        for left in level:
            for right in range(nodes[left].right, len(irreps)):
                _, l_right, p_right = irreps[right]
                p = nodes[left].p * p_right
                for l in range(abs(nodes[left].l - l_right), nodes[left].l + l_right + 1):  # noqa: E741
                    if n_factors == correlation and (l, p) not in wanted:
                        continue
                    node, value = (
                        Node(l, p, (*nodes[left].factors, right), left),
                        _value(values[left], points[right], l),
                    )
                    if _extends(bases.setdefault((node.factors, l, p), []), value.ravel()):
                        nodes.append(node)
                        values.append(value)
        level = range(first, len(nodes))
    return nodes


def _extends(basis: list[np.ndarray], vector: np.ndarray) -> bool:
    """Whether the vector is independent of an orthonormal basis; if so the basis grows."""
    rest = vector.copy()
    for _ in range(2):
        for other in basis:
            rest -= (other @ rest) * other
    if np.linalg.norm(rest) < 1e-8 * np.sqrt(len(vector)):
        return False
    basis.append(rest / np.linalg.norm(rest))
    return True


def _needed(nodes: list[Node], irreps_in: Irreps, irreps_out: Irreps) -> tuple[list[Node], list[list[int]]]:
    """The nodes without those that no output is made of, and the nodes of each output."""
    outputs = [[k for k, node in enumerate(nodes) if (node.l, node.p) == (l, p)] for _, l, p in irreps_out]
    kept = set(range(len(irreps_in))) | {k for rows in outputs for k in rows}
    for k in range(len(nodes) - 1, len(irreps_in) - 1, -1):
        if k in kept:
            kept.add(nodes[k].left)
    number = {old: new for new, old in enumerate(sorted(kept))}
    kept_nodes = [nodes[k]._replace(left=number.get(nodes[k].left, -1)) for k in sorted(kept)]
    return kept_nodes, [[number[k] for k in rows] for rows in outputs]
