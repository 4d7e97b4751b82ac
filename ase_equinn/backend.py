"""Which implementation of the operators a potential runs on, checked against the reference before it is trusted."""

from __future__ import annotations

import logging

import torch

from .cuda_graph import Replay
from .derivatives import derivatives
from .evaluator import Evaluator, InTorch
from .graph import Graph, edge_vectors
from .neighbors import neighbor_list
from .ops.conv import BACKENDS, chosen_backend
from .potential import Potential
from .programs import Programs

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # of the largest force: round-off in another order of summation
_log = logging.getLogger(__name__)


def use_backend(potential: Potential, backend: str) -> str:
    """The name of the implementation that the potential's operators now run on.

    A generated one is compared with the reference on a small cluster. With "auto", one that differs or cannot be built is
    refused, with the reason logged, and the reference is taken.

    Args:
        potential: its modules are told; their weights are left alone.
        backend: "auto", "reference", "llvm" (kernels compiled for this CPU) or "triton" (for CUDA).

    Raises:
        ValueError: generated kernels asked for on a device that they do not run on.
        RuntimeError: generated kernels asked for, and they differ from the reference.
    """
    modules = [module for module in potential.modules() if hasattr(module, "backend")]
    chosen = chosen_backend(backend, potential.device)
    _tell(modules, chosen)
    if chosen == "reference" or not modules:
        return "reference"
    problem = _difference(potential, modules, chosen)
    if problem is None:
        return chosen
    if backend != "auto":
        raise RuntimeError(f'backend="{backend}" is not to be trusted here: {problem}')
    _log.warning("operators run on the reference implementation: %s", problem)
    _tell(modules, "reference")
    return "reference"


def evaluator_of(potential: Potential, backend: str) -> Evaluator:
    """What evaluates a potential fastest: native programs on the CPU, replays on CUDA, otherwise torch.

    The programs are compared with the reference. With "auto" torch takes over where they differ from it; the reason is
    logged.

    Args:
        potential: as `use_backend` left it; frozen.
        backend: what was asked for, see `use_backend`.

    Raises:
        RuntimeError: "llvm" asked for, and the programs differ from the reference.
    """
    modules = [module for module in potential.modules() if hasattr(module, "backend")]
    chosen = {module.backend for module in modules}
    if chosen == {"triton"} and potential.device.type == "cuda":
        return Replay(potential)
    if chosen != {"llvm"}:
        return InTorch(potential)
    programs = Programs(potential, descriptors=potential.uncertainty is not None)
    graphs, positions = _cluster(potential)
    _tell(modules, "reference")
    expected = derivatives(potential, graphs, positions).forces
    _tell(modules, "llvm")
    try:
        vectors = tuple(edge_vectors(graph, positions) for graph in graphs)
        problem = _off("native programs", programs(graphs, positions, vectors).forces, expected, potential.dtype)
    except Exception as error:  # whatever a machine's compiler may say
        problem = f"native programs do not run: {type(error).__name__}: {error}"
    if problem is None:
        return programs
    if backend != "auto":
        raise RuntimeError(f'backend="{backend}" is not to be trusted here: {problem}')
    _log.warning("models run in torch, not as native programs: %s", problem)
    return InTorch(potential)


def _tell(modules, backend: str) -> None:
    for module in modules:
        module.backend = backend


def _difference(potential: Potential, modules, chosen: str) -> str | None:
    """What is wrong with the chosen implementation: forces on a small cluster against the reference."""
    graphs, positions = _cluster(potential)
    try:
        ours = derivatives(potential, graphs, positions).forces
    except Exception as error:  # whatever a machine's compiler may say
        return f"{chosen} kernels do not run: {type(error).__name__}: {error}"
    _tell(modules, "reference")
    expected = derivatives(potential, graphs, positions).forces
    _tell(modules, chosen)
    return _off(f"{chosen} kernels", ours, expected, potential.dtype)


def _off(what: str, forces: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Says by how much the forces are wrong, if they are."""
    error, scale = (forces - expected).abs().max().item(), expected.abs().max().item()
    if error <= TOLERANCE[dtype] * scale + 1e-30:
        return None
    return f"{what} give forces {error:.3g} eV/A off on a cluster whose largest force is {scale:.3g} eV/A"


def _cluster(potential: Potential, n_atoms: int = 12) -> tuple[tuple[Graph, ...], torch.Tensor]:
    """Random atoms of all species at bonding distances, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64)
    grid = torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64)] * 3)[:n_atoms]
    positions = (2.2 * grid + 0.5 * offsets).to(potential.device)
    numbers = torch.tensor([potential.species[k % len(potential.species)] for k in range(n_atoms)])
    cell, pbc = torch.zeros(1, 3, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool)
    graphs = []
    for cutoff in potential.cutoffs:
        pairs = neighbor_list(positions, cell[0], pbc[0], cutoff)
        atoms = numbers, cell, pbc, pairs.edge_index, pairs.shift, pairs.row_ptr, torch.zeros_like(numbers)
        graphs.append(Graph(*atoms, 1).to(potential.device))
    return tuple(graphs), positions
