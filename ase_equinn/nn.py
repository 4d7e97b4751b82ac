"""Layers that two or more models share. Features are lists with one (n, 2l+1, mul) tensor per irrep."""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .irreps import Irreps
from .ops.radial_table import RadialTable
from .ops.symbols import is_symbolic
from .ops.tabulate import Tabulator, Taylor, knots_for_learning, silu_series, taylor_function, taylor_linear

MAX_ATOMIC_NUMBER = 118
_FEW_SPECIES = 16  # on CUDA each costs all atoms a matrix product
_GATHERED = 2**26  # numbers in the matrices of all atoms that CUDA may gather


def second_moment_factor(function: Callable[[Tensor], Tensor]) -> float:
    """The factor c for which c f(z) has unit second moment when z is normal, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    values = function(torch.from_numpy(nodes)).numpy()
    return float(1.0 / np.sqrt((weights * values**2).sum() / weights.sum()))


_SILU = second_moment_factor(torch.nn.functional.silu)
_TANH = second_moment_factor(torch.tanh)


def silu(x: Tensor) -> Tensor:
    """SiLU scaled to unit second moment for normal input."""
    return torch.nn.functional.silu(x) * _SILU


def tanh(x: Tensor) -> Tensor:
    """tanh scaled to unit second moment for normal input."""
    return torch.tanh(x) * _TANH


def parameters(weights: nn.ParameterList) -> list[nn.Parameter]:
    """The list's parameters: iterating over it takes microseconds for each, which small systems feel."""
    return list(weights._parameters.values())


class SpeciesIndex(nn.Module):
    """Maps atomic numbers to 0..n_species-1, in ascending order of the number; an unknown one gives -1.

    Args:
        species: distinct atomic numbers, 1..118.

    Raises:
        ValueError: an empty list, a repeated number, or one outside 1..118, with the value.
    """

    def __init__(self, species: Sequence[int]):
        super().__init__()
        self.species = tuple(sorted(int(z) for z in species))
        if not self.species or len(set(self.species)) != len(self.species):
            raise ValueError(f"species: distinct atomic numbers are needed, got {list(species)}")
        if self.species[0] < 1 or self.species[-1] > MAX_ATOMIC_NUMBER:
            raise ValueError(f"species: atomic numbers lie in 1..{MAX_ATOMIC_NUMBER}, got {list(species)}")
        table = torch.full((MAX_ATOMIC_NUMBER + 1,), -1, dtype=torch.long)
        table[list(self.species)] = torch.arange(len(self.species))
        self.register_buffer("table", table, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        if is_symbolic(numbers):
            return numbers.trace.index_species(numbers, self.species)
        return self.table[numbers]


class Linear(nn.Module):
    """Mixes the channels of each irrep by its own matrix: out[l,p] = in[l,p] W[l,p] / sqrt(mul_in).

    Irreps absent from the input give zeros, irreps absent from the output are dropped. With ``n_species`` the matrix
    depends on the species of the atom (NequIP's self-connection, MACE's residual).

    Args:
        irreps_in, irreps_out: one term per irrep.
        n_species: None, or how many sets of matrices.

    Source: Geiger and Smidt, arXiv:2207.09453, sec. 3.4 (e3nn's o3.Linear, same normalisation).
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, n_species: int | None = None):
        super().__init__()
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        inputs = {(l, p): i for i, (_, l, p) in enumerate(self.irreps_in)}
        self.source = [inputs.get((l, p)) for _, l, p in self.irreps_out]
        leading = () if n_species is None else (n_species,)
        self.n_species = n_species
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(*leading, self.irreps_in[source].mul, mul))
            for source, (mul, _, _) in zip(self.source, self.irreps_out)
            if source is not None
        )
        self._largest = max((weight[0].numel() for weight in self.weights), default=0)  # of the matrices by species
        self._kept: tuple[tuple, list[Tensor]] | None = None

    def forward(self, x: Sequence[Tensor], species: Tensor | None = None, scale: float = 1.0) -> list[Tensor]:
        """x per term of irreps_in -> list per term of irreps_out, times ``scale``.

        ``species`` (n,): indices, if n_species was given.
        """
        weights, out = iter(self._scaled(scale)), []
        rows = self._rows_of_species(species)
        for source, (mul, l, _) in zip(self.source, self.irreps_out):
            if source is None:
                out.append(x[0].new_zeros(x[0].shape[0], 2 * l + 1, mul))
                continue
            weight = next(weights)
            if rows is None:
                out.append(x[source] @ weight)
            else:
                out.append(self._by_species(x[source], weight, rows))
        return out

    def _scaled(self, scale: float) -> list[Tensor]:
        """The matrices as they are applied; kept while the weights are frozen."""
        weights = parameters(self.weights)
        if any(weight.requires_grad for weight in weights):
            return self._matrices(weights, scale)
        key = (scale, *((weight.data_ptr(), weight._version, weight.dtype) for weight in weights))
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False):  # what is kept must serve under autograd as well
                self._kept = key, self._matrices(weights, scale)
        return self._kept[1]

    def _matrices(self, weights: list[Tensor], scale: float) -> list[Tensor]:
        if self.n_species == 1:
            weights = [weight[0] for weight in weights]
        return [weight * (scale / weight.shape[-2] ** 0.5) for weight in weights]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}

    def _rows_of_species(self, species: Tensor | None) -> tuple[Tensor, Tensor, list[int]] | Tensor | None:
        """Atoms sorted by species, the place of each atom among them, and how many atoms each species has.

        On CUDA the species themselves, if these or the atoms are few: to learn how many atoms each has would be to wait
        for the device.
        """
        if self.n_species is None or self.n_species == 1:
            return None
        if is_symbolic(species) or species.device.type != "cpu" and self._without_counting(len(species)):
            return species
        order = torch.argsort(species, stable=True)
        return order, torch.argsort(order), torch.bincount(species, minlength=self.n_species).tolist()

    def _without_counting(self, n_atoms: int) -> bool:
        return self.n_species <= _FEW_SPECIES or n_atoms * self._largest <= _GATHERED

    @staticmethod
    def _by_species(x: Tensor, weight: Tensor, rows: tuple[Tensor, Tensor, list[int]] | Tensor) -> Tensor:
        if is_symbolic(x):
            return x.linear(weight, by_species=True)
        if isinstance(rows, Tensor):
            if len(rows) * weight[0].numel() <= _GATHERED:
                return torch.bmm(x, weight.index_select(0, rows))
            return sum((rows == s)[:, None, None] * (x @ weight[s]) for s in range(len(weight)))
        order, place, counts = rows
        parts = x.index_select(0, order).split(counts)
        out = [part @ weight[s] for s, part in enumerate(parts) if len(part)]
        if not out:
            return x.new_zeros(0, x.shape[1], weight.shape[2])
        return torch.cat(out).index_select(0, place)


class Gate(nn.Module):
    """Scalars pass through SiLU (0e) or tanh (0o); each l > 0 channel is multiplied by its own SiLU-activated 0e gate.

    Args:
        irreps_out: the irreps after the gate, one term per irrep.

    Attributes:
        irreps_in: what must come in: irreps_out with ``n_gates`` more 0e channels (the last ones are the gates).

    Source: Weiler et al., NeurIPS 2018 (gated nonlinearity); e3nn's nn.Gate with unit-second-moment activations.
    """

    def __init__(self, irreps_out: Irreps):
        super().__init__()
        self.irreps_out = Irreps(irreps_out).simplify()
        self.n_gates = sum(mul for mul, l, _ in self.irreps_out if l > 0)
        self.irreps_in = Irreps([(self.n_gates, 0, 1), *self.irreps_out]).simplify()
        self.n_scalars = self.irreps_out.count(0, 1)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        blocks = {(l, p): block for (_, l, p), block in zip(self.irreps_in, x)}
        gates, start, out = None, self.n_scalars, []
        if self.n_gates or self.n_scalars:
            gates = silu(blocks[0, 1])
        for mul, l, p in self.irreps_out:
            if (l, p) == (0, 1):
                out.append(gates[:, :, : self.n_scalars])
            elif l == 0:
                out.append(tanh(blocks[0, -1]))
            else:
                out.append(blocks[l, p] * gates[:, :, start : start + mul])
                start += mul
        return out


class RadialNetwork(nn.Module):
    """The learned radial function w(r) = MLP(envelope(r) * basis(r)): no biases, so w vanishes with the envelope.

    Args:
        basis: module without parameters, lengths (E,) -> (E, n), n functions up to its cutoff.
        envelope: function, lengths (E,) -> (E,).
        hidden: widths of the hidden SiLU layers.
        n_out: columns of the result.
        n_knots: of the table, from 0 to the cutoff.

    Source: Batzner et al., Nat. Commun. 13, 2453 (2022), eq. 8; weights scaled by 1/sqrt(fan in).
    """

    def __init__(
        self,
        basis: nn.Module,
        envelope: Callable[[Tensor], Tensor],
        hidden: Sequence[int],
        n_out: int,
        n_knots: int = 256,
    ):
        super().__init__()
        self.basis, self.envelope = basis, envelope
        sizes = [basis.n, *hidden, n_out]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(a, b)) for a, b in zip(sizes, sizes[1:]))
        self.tabulate = Tabulator(self.inputs, basis.cutoff, n_knots, knots_for_learning(n_knots))

    def inputs(self, lengths: Tensor) -> Tensor:
        """envelope * basis: (E,) in A -> (E, n)."""
        return self.basis(lengths) * self.envelope(lengths)[:, None]

    def forward(self, lengths: Tensor) -> Tensor:
        """The exact function: lengths (E,) in A -> (E, n_out)."""
        *hidden, last = _scaled(parameters(self.weights))
        x = self.inputs(lengths)
        for weight in hidden:
            x = silu(x @ weight)
        return x @ last

    def table(self, lengths: Tensor | None = None) -> RadialTable:
        """The function as `conv` wants it, for these distances if they are given, see `Tabulator`."""
        return self.tabulate(self._taylor, parameters(self.weights), lengths)

    @staticmethod
    def _taylor(x: Taylor, weights: list[Tensor]) -> Taylor:
        *hidden, last = _scaled(weights)
        for weight in hidden:
            x = taylor_function(taylor_linear(x, weight), silu_series) * _SILU
        return taylor_linear(x, last)


def _scaled(weights: list[Tensor]) -> list[Tensor]:
    return [weight / weight.shape[0] ** 0.5 for weight in weights]
