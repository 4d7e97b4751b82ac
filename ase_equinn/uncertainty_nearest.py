"""How far descriptors lie from the nearest centre: by a kernel on the CPU, by torch elsewhere."""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import Callable

import torch
from torch import Tensor

from .ops.jit import compile_function, vector_bytes
from .ops.nearest_kernel import TILE, NearestKernel

_ROWS = 4096  # atoms whose distances from all centres are in memory at a time, where there is no kernel
_FAR = 1e9  # from which no atom is nearest
_log = logging.getLogger(__name__)


class Nearest:
    """d^2 = min_c sum_a ((x_a - c_a) / w_a)^2 / k for one dtype and device.

    Args:
        centres: (n_centres, k).
        widths: (k,).
        dtype, device: of the descriptors.
    """

    def __init__(self, centres: Tensor, widths: Tensor, dtype: torch.dtype, device: torch.device):
        scale, origin = 1 / (widths.double() * math.sqrt(len(widths))), centres.double().mean(0)
        points = (centres.double() - origin) * scale
        self._origin, self._scale, self._points = (t.to(device, dtype) for t in (origin, scale, points))
        self._squares, self._columns = self._points.square().sum(1), self._points.T.contiguous()
        self._kernel = _kernel(dtype.itemsize * 8) if device.type == "cpu" and dtype.is_floating_point else None
        if self._kernel is not None:
            block = TILE * vector_bytes() // dtype.itemsize
            far = torch.full((points.shape[1], -len(points) % block), _FAR, dtype=dtype)
            self._columns, self._scratch = torch.cat([self._columns, far], dim=1), torch.empty_like(self._origin)
            self._fixed = [t.data_ptr() for t in (self._origin, self._scale, self._columns, self._scratch)]
            self._sizes = tuple(self._columns.shape)

    def __call__(self, x: Tensor, rows: Tensor, out: Tensor) -> None:
        """Sets out[rows], (n,) in x's dtype, to d^2 of x[rows], (n, k) with its numbers of a row side by side."""
        if self._kernel is None:
            out[rows] = self._by_torch(x[rows])
            return
        pointers = x.data_ptr(), *self._fixed, out.data_ptr(), rows.data_ptr()
        self._kernel(*pointers, 0, len(rows), x.stride(0), *self._sizes)

    def _by_torch(self, x: Tensor) -> Tensor:
        """The nearest centre is found by a matrix product; the distance from it by differences, which do not cancel."""
        y = (x - self._origin) * self._scale
        nearest = [torch.addmm(self._squares, part, self._points.T, alpha=-2).argmin(1) for part in y.split(_ROWS)]
        return (y - self._points[torch.cat(nearest)]).square().sum(1) if len(y) else y.new_zeros(0)


@lru_cache(maxsize=None)
def _kernel(bits: int) -> Callable | None:
    try:
        kernel = NearestKernel(bits=bits, lanes=vector_bytes() * 8 // bits)
        return compile_function(kernel.name, kernel.source, kernel.n_pointers, kernel.n_integers, (kernel.name, bits))
    except Exception as error:  # whatever a machine's compiler may say
        _log.warning("distances from centres are computed in torch: %s: %s", type(error).__name__, error)
        return None
