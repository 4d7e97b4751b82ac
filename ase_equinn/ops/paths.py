"""The path table of an equivariant convolution: which couplings exist, and where their weights and outputs stand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..irreps import Irreps, clebsch_gordan


class Path(NamedTuple):
    """Block ``i_in`` of the input coupled to Y of degree ``l_sh``, into block ``i_out`` at channels ``start:start+mul``."""

    i_in: int
    l_sh: int
    i_out: int
    start: int
    mul: int
    weight: int  # the path's weights are columns weight:weight+mul of the radial function's output


class ConvPaths:
    """The path table of one convolution: which couplings exist, where their weights and outputs are.

    A path (l_in, l_sh) -> l_out exists if the triangle condition and the parity p_in (-1)^l_sh = p_out hold and (l_out,
    p_out) is wanted. Paths with the same output irrep are concatenated along channels.

    Args:
        irreps_in: of the features x, one term per irrep.
        lmax: highest degree of the spherical harmonics.
        irreps_out: the output irreps wanted; multiplicities are ignored.

    Attributes:
        irreps_out: with the multiplicities that result, one term per irrep, unreachable ones dropped.
        n_weights: columns that the radial function must give.
    """

    def __init__(self, irreps_in: Irreps, lmax: int, irreps_out: Irreps):
        self.irreps_in, self.lmax = Irreps(irreps_in), lmax
        if len(self.irreps_in.simplify()) != len(self.irreps_in):
            raise ValueError(f"ConvPaths: irreps_in must have one term per irrep, got {self.irreps_in}")
        wanted = [(l, p) for _, l, p in Irreps(irreps_out).simplify()]
        couplings = [
            (i_in, l_sh, key)
            for key in wanted
            for i_in, (_, l_in, p_in) in enumerate(self.irreps_in)
            for l_sh in range(lmax + 1)
            if abs(l_in - l_sh) <= key[0] <= l_in + l_sh and p_in * (-1) ** l_sh == key[1]
        ]
        keys = sorted({key for _, _, key in couplings}, key=wanted.index)
        widths, self.paths, self.n_weights = [0] * len(keys), [], 0
        for i_in, l_sh, key in couplings:
            mul, i_out = self.irreps_in[i_in].mul, keys.index(key)
            self.paths.append(Path(i_in, l_sh, i_out, widths[i_out], mul, self.n_weights))
            widths[i_out] += mul
            self.n_weights += mul
        self.irreps_out = Irreps([(mul, l, p) for mul, (l, p) in zip(widths, keys)])
        self._couplings: dict[tuple, list[Tensor]] = {}

    def of_input(self, i_in: int) -> list[Path]:
        return [path for path in self.paths if path.i_in == i_in]

    def couplings(self, like: Tensor) -> list[Tensor]:
        """Per input block a matrix ((lmax+1)^2, sum over its paths of (2 l_out+1) * (2 l_in+1)).

        Y @ matrix is the linear map from x_j to all its outputs; sqrt(2 l_out+1) gives component normalisation.
        """
        key = (like.dtype, like.device)
        if key not in self._couplings:
            matrices = [torch.from_numpy(self._coupling(i)).to(like) for i in range(len(self.irreps_in))]
            self._couplings[key] = matrices
        return self._couplings[key]

    def _coupling(self, i_in: int) -> np.ndarray:
        blocks = []
        for path in self.of_input(i_in):
            l_in, l_out = self.irreps_in[i_in].l, self.irreps_out[path.i_out].l
            full = np.zeros(((self.lmax + 1) ** 2, 2 * l_out + 1, 2 * l_in + 1))
            tensor = clebsch_gordan(l_in, path.l_sh, l_out).transpose(1, 2, 0) * np.sqrt(2 * l_out + 1)
            full[path.l_sh**2 : (path.l_sh + 1) ** 2] = tensor
            blocks.append(full.reshape(full.shape[0], -1))
        return np.concatenate(blocks, axis=1) if blocks else np.zeros(((self.lmax + 1) ** 2, 0))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_couplings": {}}
