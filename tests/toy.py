"""Two small models with the contract of a real one, and a brute-force graph: tests below the models use these.

`Pair` is a Morse-like pair potential, `Embedded` a many-body one with a message-passing step. Both are smooth up to
their cutoff and know their species. `register(monkeypatch)` lets files name them for the length of a test.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from ase_equinn import potential
from ase_equinn.graph import Graph

CELLS = {
    "triclinic": [[3.1, 0.2, 0.1], [0.9, 2.8, 0.3], [-0.4, 0.7, 3.3]],  # smaller than every cutoff below
    "left-handed": [[0.9, 2.8, 0.3], [3.1, 0.2, 0.1], [-0.4, 0.7, 3.3]],
    "molecule": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
}


def envelope(lengths: Tensor, cutoff: float) -> Tensor:
    """(1 - (r/c)^2)^4 inside the cutoff: three continuous derivatives at c."""
    return torch.clamp(1 - (lengths / cutoff) ** 2, min=0) ** 4


class Pair(nn.Module):
    """E_i = 1/2 sum_j w(Z_i) w(Z_j) (exp(-2 a (r - r0)) - 2 exp(-a (r - r0))) envelope(r) + bias(Z_i)."""

    def __init__(self, species, cutoff, r0=1.8):
        super().__init__()
        self.species, self.cutoff, self.r0 = tuple(int(z) for z in species), float(cutoff), r0
        self.hyperparameters = {"species": list(species), "cutoff": self.cutoff, "r0": r0}
        self.weight = nn.Parameter(0.5 + torch.rand(len(self.species)))
        self.bias = nn.Parameter(torch.randn(len(self.species)))
        self.steepness = nn.Parameter(torch.tensor(1.3))
        self.register_buffer("index", torch.full((119,), -1), persistent=False)
        self.index[list(self.species)] = torch.arange(len(self.species))

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        kind = self.index[graph.numbers]
        i, j = graph.edge_index
        lengths = vectors.norm(dim=1)
        decay = torch.exp(-self.steepness * (lengths - self.r0))
        pair = 0.5 * (decay**2 - 2 * decay) * envelope(lengths, self.cutoff)
        weight = self.weight[kind]
        return self.bias[kind].index_add(0, i, pair * weight[i] * weight[j])


class Embedded(nn.Module):
    """E_i = -sqrt(1 + rho_i) + |v_i|^2 + tanh(sum_j rho_j f_ij) + bias;
    rho_i = sum_j w_j f_ij, v_i = sum_j f_ij r_ij.
    """

    def __init__(self, species, cutoff):
        super().__init__()
        self.species, self.cutoff = tuple(int(z) for z in species), float(cutoff)
        self.hyperparameters = {"species": list(species), "cutoff": self.cutoff}
        self.weight = nn.Parameter(0.5 + torch.rand(len(self.species)))
        self.bias = nn.Parameter(torch.randn(len(self.species)))
        self.register_buffer("index", torch.full((119,), -1), persistent=False)
        self.index[list(self.species)] = torch.arange(len(self.species))

    def _densities(self, graph: Graph, vectors: Tensor):
        kind = self.index[graph.numbers]
        i, j = graph.edge_index
        lengths = vectors.norm(dim=1)
        f = torch.exp(-0.7 * lengths) * envelope(lengths, self.cutoff)
        zeros = vectors.new_zeros(len(kind))
        rho = zeros.index_add(0, i, self.weight[kind][j] * f)
        dipole = vectors.new_zeros(len(kind), 3).index_add(0, i, f[:, None] * vectors)
        return kind, rho, dipole, zeros.index_add(0, i, rho[j] * f)

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        kind, rho, dipole, second = self._densities(graph, vectors)
        return -torch.sqrt(1 + rho) + (dipole**2).sum(1) + torch.tanh(second) + self.bias[kind]

    def descriptors(self, graph: Graph, vectors: Tensor) -> Tensor:
        _, rho, dipole, second = self._densities(graph, vectors)
        return torch.stack([rho, dipole.norm(dim=1), second], dim=1)


def register(monkeypatch) -> None:
    """Let potential files name the toys while the test runs."""
    for name, model in (("toy_pair", Pair), ("toy_embedded", Embedded)):
        monkeypatch.setitem(potential.ARCHITECTURES, name, (model.__module__, model.__name__))


def brute_graph(numbers, positions: Tensor, cell, pbc, cutoff: float) -> Graph:
    """All edges shorter than the cutoff by trying every image that could matter; sorted by (i, j, S)."""
    cell, pbc = torch.as_tensor(cell, dtype=torch.float64), torch.as_tensor(pbc)
    n = len(numbers)
    reach = [0, 0, 0]
    if pbc.any():
        full = cell.clone()
        full[~pbc] = torch.eye(3, dtype=torch.float64)[~pbc]
        heights = 1 / torch.linalg.inv(full).norm(dim=0)
        span = positions.max(0).values - positions.min(0).values
        reach = [math.ceil((cutoff + span.norm().item()) / heights[d].item()) + 1 if pbc[d] else 0 for d in range(3)]
    shifts = list(itertools.product(*(range(-r, r + 1) for r in reach)))
    offsets = torch.tensor(shifts, dtype=torch.float64).reshape(-1, 3) @ cell
    edges = []
    for i, j in itertools.product(range(n), range(n)):
        lengths = (positions[j] - positions[i] + offsets).norm(dim=1)
        edges += [(i, j, s) for s, d in zip(shifts, lengths.tolist(), strict=True) if d < cutoff and (i != j or any(s))]
    edges.sort()
    centres = torch.tensor([e[0] for e in edges], dtype=torch.int64)
    return Graph(
        numbers=torch.as_tensor(numbers),
        cell=cell[None],
        pbc=pbc[None],
        edge_index=torch.stack([centres, torch.tensor([e[1] for e in edges], dtype=torch.int64)]),
        shift=torch.tensor([e[2] for e in edges], dtype=torch.int32).reshape(-1, 3),
        row_ptr=torch.searchsorted(centres, torch.arange(n + 1)),
        batch=torch.zeros(n, dtype=torch.int64),
        n_graphs=1,
    )


def structure(kind: str, cutoffs, seed=0, n=4):
    """(numbers, positions, cell, pbc, graphs) of a random structure in one of CELLS."""
    rng = np.random.default_rng(seed)
    periodic = kind != "molecule"
    cell = torch.tensor(CELLS[kind], dtype=torch.float64)
    positions = torch.tensor(rng.uniform(0, 1, (n, 3))) @ (
        cell if periodic else 3.0 * torch.eye(3, dtype=torch.float64)
    )
    numbers = torch.tensor(rng.choice([6, 14], n))
    pbc = torch.tensor([periodic] * 3)
    graphs = tuple(brute_graph(numbers, positions, cell, pbc, cutoff) for cutoff in cutoffs)
    return numbers, positions, cell, pbc, graphs
