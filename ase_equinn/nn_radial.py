"""MACE's radial functions: a network behind a basis that sees a transformed distance, tables per pair of elements."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Sequence

import torch
from torch import Tensor, nn

from .nn import second_moment_factor, silu
from .nn_pairs import Pairs, joined
from .ops.radial_table import RadialTable
from .ops.tabulate import (
    Tabulator,
    Taylor,
    knots_for_learning,
    silu_series,
    tanh_series,
    taylor_function,
    taylor_linear,
    taylor_product,
)
from .radial import BASES, check_count, polynomial_envelope
from .radial_transforms import TRANSFORMS, covalent_radius

_SILU = second_moment_factor(nn.functional.silu)


class RadialOptions(NamedTuple):
    """What stands between a distance and the weights of a convolution.

    n_basis, basis: size and name (see radial.BASES) of the basis.
    envelope_power: p of the polynomial envelope.
    envelope_last: the envelope multiplies the network's output instead of its input.
    hidden: widths of the hidden layers.
    transform: None, or what the basis sees instead of the distance: a name in radial_transforms.TRANSFORMS.
    parameters: of the transform, in the order of its arguments; () for its defaults.
    radii: A, per species in ascending order of the atomic number; () for the covalent radii.
    n_knots: of the table, from 0 to the cutoff.
    """

    n_basis: int = 8
    basis: str = "bessel"
    envelope_power: int = 5
    envelope_last: bool = False
    hidden: Sequence[int] = (64, 64, 64)
    transform: str | None = None
    parameters: Sequence[float] = ()
    radii: Sequence[float] = ()
    n_knots: int = 256


def check_radial(fields: dict, n_species: int) -> RadialOptions:
    """Options from their names and values.

    Raises:
        ValueError: an unknown name or a value without meaning.
    """
    unknown = sorted(set(fields) - set(RadialOptions._fields))
    if unknown:
        raise ValueError(f"radial: known are {', '.join(RadialOptions._fields)}, got {unknown[0]!r}")
    options = RadialOptions(**fields)
    for name, known, value in (("basis", BASES, options.basis), ("transform", [None, *TRANSFORMS], options.transform)):
        if value not in known:
            raise ValueError(f"radial: {name} must be one of {[*known]}, got {value!r}")
    if options.radii and len(options.radii) != n_species:
        raise ValueError(f"radial: radii needs one number per species, {n_species}, got {options.radii!r}")
    for name, least in (("n_basis", 1), ("envelope_power", 1), ("n_knots", 2)):
        check_count("radial", name, getattr(options, name), least)
    return options


class PairRadialNetwork(nn.Module):
    """w(r) = envelope(r) MLP(basis(t(r))), or MLP(envelope(r) basis(t(r))): no biases, so w ends with the envelope.

    Args:
        options: see there.
        cutoff: A.
        species: atomic numbers, ascending.
        n_out: columns of the result.
        density: the result is tanh(x^2) of one linear layer x instead, one column (MACE's density blocks).

    Source: Batatia et al., arXiv:2206.07697, eq. 8; weights scaled by 1/sqrt(fan in).
    """

    def __init__(
        self, options: RadialOptions, cutoff: float, species: Sequence[int], n_out: int, density: bool = False
    ):
        super().__init__()
        self.options, self.density, self.cutoff = options, density, cutoff
        self.basis = BASES[options.basis](options.n_basis, cutoff)
        self.radii = tuple(options.radii)
        if options.transform is not None and not self.radii:
            self.radii = tuple(covalent_radius(z) for z in species)
        sizes = [options.n_basis, 1] if density else [options.n_basis, *options.hidden, n_out]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(a, b)) for a, b in zip(sizes, sizes[1:]))
        self._tabulators: dict[tuple[int, int], Tabulator] = {}

    def inputs(self, pair: tuple[int, int], lengths: Tensor) -> Tensor:
        """What enters the network for a pair of species, and the envelope in the last column: (E,) -> (E, n + 1)."""
        envelope = polynomial_envelope(lengths, self.cutoff, self.options.envelope_power)[:, None]
        seen = lengths
        if self.options.transform is not None:
            radii = self.radii[pair[0]] + self.radii[pair[1]]
            seen = TRANSFORMS[self.options.transform](lengths, radii, *self.options.parameters)
        basis = self.basis(seen)
        return torch.cat([basis if self.options.envelope_last else basis * envelope, envelope], dim=1)

    def forward(self, lengths: Tensor, pair: tuple[int, int] = (0, 0)) -> Tensor:
        """The exact function of one pair: lengths (E,) in A -> (E, n_out)."""
        x = self.inputs(pair, lengths)
        x, envelope = x[:, :-1], x[:, -1:]
        *hidden, last = _scaled(self.weights)
        for weight in hidden:
            x = silu(x @ weight)
        x = x @ last
        if self.density:
            x = torch.tanh(x.square())
        return x * envelope if self.options.envelope_last else x

    def table(self, pairs: Pairs, lengths: Tensor | None = None) -> RadialTable:
        """The functions of these pairs as `conv` wants them, for these distances if they are given, see `Tabulator`."""
        return joined(pairs, [self._tabulator(pair)(self._taylor, [*self.weights], lengths) for pair in pairs.species])

    def _tabulator(self, pair: tuple[int, int]) -> Tabulator:
        if pair not in self._tabulators:
            n = self.options.n_knots
            self._tabulators[pair] = Tabulator(partial(self.inputs, pair), self.cutoff, n, knots_for_learning(n))
        return self._tabulators[pair]

    def _taylor(self, x: Taylor, weights: list[Tensor]) -> Taylor:
        x, envelope = x[..., :-1], x[..., -1:]
        *hidden, last = _scaled(weights)
        for weight in hidden:
            x = taylor_function(taylor_linear(x, weight), silu_series) * _SILU
        x = taylor_linear(x, last)
        if self.density:
            x = taylor_function(taylor_product(x, x), tanh_series)
        return taylor_product(x, envelope) if self.options.envelope_last else x

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tabulators": {}}


def _scaled(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight / weight.shape[0] ** 0.5 for weight in weights]
