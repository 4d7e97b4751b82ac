"""Many structures at once: on small ones a batch is several times faster than one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.stress import full_3x3_to_voigt_6_stress

from .backend import evaluator_of, use_backend
from .calculator_arguments import find_device, load_models, one_of
from .calculator_modes import own_modes
from .calculator_results import check_finite
from .evaluate_memory import Budget, in_groups
from .evaluator import Energies, Evaluator
from .evaluator_mean import Mean
from .graph import Graph, check_atoms, check_coincident
from .neighbors_batch import BatchNeighborList
from .potential import Potential
from .potential_committee import Committee

PROPERTIES = ("energy", "free_energy", "energies", "forces", "stress", "stresses")
WITHOUT_GRADIENT = {"energy", "free_energy", "energies"}
PERIODIC = {"stress", "stresses"}
MAX_EDGES = {"cpu": 50_000, "cuda": 1_000_000}  # of a batch: what fills the caches, what fills a GPU
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def evaluate(
    structures: Sequence[Atoms],
    potential: str | Path | Potential | Committee | Sequence[str | Path | Potential],
    properties: Sequence[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
    max_edges: int | None = None,
    progress: bool | Callable[[int, int], None] = True,
) -> list[dict]:
    """For each structure what `EquiCalculator` gives for it alone, to the round-off of sums in another order.

    Args:
        structures: any mixture of sizes, elements and boundary conditions; left unchanged.
        potential: folder, file, shipped name, or a Potential (copied); of a committee (see `EquiCalculator`) the mean.
        properties: some of energy, free_energy, energies, forces, stress, stresses; energies alone take no gradient.
            None means all that each structure has: stress and stresses only where it is periodic in three directions.
        device, dtype, backend: see `EquiCalculator`.
        max_edges: of a batch; None means 50,000 on the CPU, 1,000,000 on a GPU. A batch that does not fit into memory
            is halved, and so are those after it.
        progress: a bar on a terminal, none, or a function that is told how many structures are done and how many
            there are.

    Returns:
        a dict of results for each structure, in ASE's names, units, shapes and signs; float64.

    Raises:
        TypeError, ValueError: a structure that cannot be evaluated, with its number, the atom and the value.
        PropertyNotImplementedError: stress asked for where not all directions are periodic; a property of no such name.
        CalculationFailed: a result that is not finite.
        MemoryError: one structure alone that does not fit into memory.
    """
    if isinstance(structures, Atoms):
        raise TypeError("evaluate takes a list of structures, got one Atoms: evaluate([atoms], ...)")
    structures = list(structures)
    ready = load_potential(potential, device=device, dtype=dtype, backend=backend)
    with _reported(progress) as report:
        return evaluate_with(
            ready, structures, properties, names=_numbered(len(structures)), max_edges=max_edges, report=report
        )


def load_potential(potential, *, device="auto", dtype="float32", backend="auto") -> Evaluator:
    """What `EquiCalculator` makes of the same arguments; of a committee the mean."""
    place, kind = find_device(device), _DTYPES[one_of("dtype", dtype, _DTYPES)]
    with own_modes(place):
        stored, _, _ = load_models(potential)
        loaded = [one.to(device=place, dtype=kind).requires_grad_(False).eval() for one in stored]
        for one in loaded:
            use_backend(one, backend)
        evaluators = [evaluator_of(one, backend) for one in loaded]
    return evaluators[0] if len(evaluators) == 1 else Mean(evaluators)


def evaluate_with(
    ready: Evaluator,
    structures: Sequence[Atoms],
    properties: Sequence[str] | None = None,
    *,
    names: Sequence[str],
    max_edges: int | None = None,
    report: Callable[[int, int], None] | None = None,
    lists: dict[float, BatchNeighborList] | None = None,
) -> list[dict]:
    """`evaluate` with a potential that is ready; `names` stand for the structures in error messages.

    Args:
        lists: a neighbour list for each cutoff, kept by the caller, whose skin saves searches where the same structures
            come again.
    """
    if properties is not None:
        properties = [properties] if isinstance(properties, str) else list(properties)
        _check_properties(structures, properties, names)
    gradient = properties is None or not WITHOUT_GRADIENT.issuperset(properties)
    potential = ready.potential
    budget = Budget(MAX_EDGES[potential.device.type] if max_edges is None else max_edges)
    results, done = [], 0
    for block in _blocks(structures, budget.max_edges if lists is None else None):
        part, called = structures[block], names[block]
        graphs, vectors, positions = batch_graphs(part, potential, called, lists)
        sizes = [len(atoms) for atoms in part]
        for a, b, found in compute_groups(ready, graphs, vectors, positions, sizes, budget, gradient):
            for result in _split(found, part[a:b], called[a:b]):
                results.append(result if properties is None else {name: result[name] for name in properties})
            done += b - a
            if report:
                report(done, len(structures))
    return results


def batch_graphs(
    structures: Sequence[Atoms], potential: Potential, names: Sequence[str], lists=None
) -> tuple[list[Graph], list[torch.Tensor], torch.Tensor]:
    """One graph of all structures for each cutoff, its edge vectors, and the positions, on the potential's device."""
    _check_structures(structures, potential.species, names)
    sizes = [len(atoms) for atoms in structures]
    positions = torch.from_numpy(np.concatenate([atoms.positions for atoms in structures], dtype=np.float64))
    cell = torch.from_numpy(np.array([atoms.cell.array for atoms in structures], dtype=np.float64))
    pbc = torch.from_numpy(np.array([atoms.pbc for atoms in structures]))
    numbers = torch.from_numpy(np.concatenate([atoms.numbers for atoms in structures], dtype=np.int64))
    graphs, vectors = [], []
    for cutoff in potential.cutoffs:
        pairs = (lists[cutoff] if lists else BatchNeighborList(cutoff)).update(positions, cell, pbc, sizes)
        graphs.append(graph_of(pairs, numbers, cell, pbc, sizes).to(potential.device))
        vectors.append(pairs.vectors.to(potential.device))
    check_distances(graphs[-1], vectors[-1], names)
    return graphs, vectors, positions.to(potential.device)


def graph_of(pairs, numbers, cell, pbc, sizes: Sequence[int]) -> Graph:
    """The graph of a batch of structures from its pairs."""
    batch = torch.repeat_interleave(torch.tensor(sizes, dtype=torch.int64, device=numbers.device))
    return Graph(numbers, cell, pbc, pairs.edge_index, pairs.shift, pairs.row_ptr, batch, len(sizes))


def compute_groups(
    ready: Evaluator, graphs, vectors, positions, sizes: Sequence[int], budget: Budget, gradient: bool
) -> Iterator[tuple[int, int, Energies]]:
    """(first, last, what the potential gives for these structures) over groups that fit into memory."""
    first = [0, *np.cumsum(sizes).tolist()]
    edges = graphs[0].row_ptr[torch.tensor(first, device=positions.device)].diff().tolist()

    def compute(a: int, b: int) -> Energies:
        i, j = first[a], first[b]
        parts = [_slice(graph, v, i, j, a, b) for graph, v in zip(graphs, vectors, strict=True)]
        own, known = tuple(graph for graph, _ in parts), tuple(v for _, v in parts)
        with own_modes(positions.device):
            return ready(own, positions[i:j], known, gradient)

    yield from in_groups(edges, budget, compute)


def _slice(graph: Graph, vectors: torch.Tensor, i: int, j: int, first: int, last: int) -> tuple[Graph, torch.Tensor]:
    """Structures first ... last - 1, which have the atoms i ... j - 1."""
    a, b = int(graph.row_ptr[i]), int(graph.row_ptr[j])
    part = Graph(
        graph.numbers[i:j], graph.cell[first:last], graph.pbc[first:last], graph.edge_index[:, a:b] - i,
        graph.shift[a:b], graph.row_ptr[i : j + 1] - a, graph.batch[i:j] - first, last - first,
    )  # fmt: skip
    return part, vectors[a:b]


def _split(found: Energies, structures: Sequence[Atoms], names: Sequence[str]) -> list[dict]:
    """ASE's results of each structure of a batch.

    Raises:
        CalculationFailed: a result that is not finite, by the structure's name.
    """
    sizes = np.array([len(atoms) for atoms in structures])
    energies, forces, virials = (None if x is None else x.cpu().numpy() for x in found)
    finite = all(np.isfinite(values).all() for values in (energies, forces, virials) if values is not None)
    if virials is not None:
        periodic = np.array([atoms.pbc for atoms in structures]).all(1)
        volumes = np.abs(np.linalg.det([atoms.cell.array for atoms in structures]))
        density = np.repeat(1.0 / np.where(periodic, volumes, 1.0), sizes)
        stresses = full_3x3_to_voigt_6_stress(virials * density[:, None, None])
    results, end = [], 0
    for k, (atoms, name) in enumerate(zip(structures, names, strict=True)):
        start, end = end, end + sizes[k]
        energy = float(energies[start:end].sum())
        result = {"energy": energy, "free_energy": energy, "energies": energies[start:end].copy()}
        if virials is not None:
            result["forces"] = forces[start:end].copy()
            if periodic[k]:
                result |= {"stress": stresses[start:end].sum(0), "stresses": stresses[start:end].copy()}
        if not finite:
            _check(result, atoms, name)
        results.append(result)
    return results


def _check_structures(structures: Sequence[Atoms], species: Sequence[int], names: Sequence[str]) -> None:
    """`check_atoms` of each structure, one after the other only where something is wrong with one."""
    numbers = set().union(*(atoms.numbers.tolist() for atoms in structures if isinstance(atoms, Atoms)))
    if all(isinstance(atoms, Atoms) for atoms in structures) and numbers <= set(species):
        cells = np.array([atoms.cell.array for atoms in structures])
        pbc = np.array([atoms.pbc for atoms in structures])
        unit = cells / np.maximum(np.linalg.norm(cells, axis=2, keepdims=True), 1e-300)
        sound = ~pbc.any(1) | (pbc.all(1) & (np.abs(np.linalg.det(unit)) > 1e-6))
        positions = np.concatenate([atoms.positions for atoms in structures])
        if sound.all() and np.isfinite(cells).all() and np.isfinite(positions).all():
            return
    for atoms, name in zip(structures, names, strict=True):
        try:
            check_atoms(atoms, species)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}: {error}") from None


def _blocks(structures: Sequence[Atoms], max_edges: int | None) -> Iterator[slice]:
    """Structures whose graphs are built together: enough atoms for some batches, few enough to bound memory."""
    most = max(1000, max_edges // 10) if max_edges else float("inf")
    first, atoms = 0, 0
    for k, structure in enumerate(structures):
        n = len(structure) if isinstance(structure, Atoms) else 0  # what is no structure is refused when it is checked
        if k > first and atoms + n > most:
            yield slice(first, k)
            first, atoms = k, 0
        atoms += n
    if first < len(structures):
        yield slice(first, len(structures))


def _check_properties(structures: Sequence[Atoms], properties: Sequence[str], names: Sequence[str]) -> None:
    for name in properties:
        if name not in PROPERTIES:
            raise PropertyNotImplementedError(f"properties can be {', '.join(PROPERTIES)}; got {name!r}")
    if PERIODIC.intersection(properties):
        for atoms, name in zip(structures, names, strict=True):
            if isinstance(atoms, Atoms) and not atoms.pbc.all():
                pbc = atoms.pbc.tolist()
                raise PropertyNotImplementedError(f"{name}: stress needs periodicity in all directions, pbc is {pbc}")


def check_distances(graph: Graph, vectors: torch.Tensor, names: Sequence[str]) -> None:
    """`check_coincident`, whose error names the structure."""
    try:
        check_coincident(graph, vectors)
    except ValueError as error:
        k = int(graph.batch[graph.edge_index[0, vectors.square().sum(1).argmin()]])
        text = str(error).replace(f" of structure {k}", "", 1)
        raise ValueError(f"{names[k]}: {text}") from None


def _check(result: dict, atoms: Atoms, name: str) -> None:
    try:
        check_finite(result, atoms)
    except Exception as error:
        raise type(error)(f"{name}: {error}") from None


def _numbered(n: int) -> list[str]:
    return [f"structure {k}" for k in range(n)]


@contextmanager
def _reported(progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int, int], None] | None]:
    """What to call after each batch: a bar if standard error is a terminal, the caller's function, nothing."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluate", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
