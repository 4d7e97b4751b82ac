"""What there is to compute in a convolution on CUDA, and how it is divided among programs: see conv_triton_kernels."""

from __future__ import annotations

from typing import NamedTuple

from .paths import ConvPaths, Path
from .triton_source import channel_blocks

_REGISTERS = 96  # 32-bit numbers per thread that the sums (or the gradients that are read) of one part may take


class Kind(NamedTuple):
    """Which function of the family. With `dual`, x, Y and r have tangents, and outputs are derivatives along them."""

    name: str  # forward, edges, neighbours, table
    dual: bool = False
    table_tangent: bool = False
    tables: bool = False  # every edge has a table of its own, which begins at a row of T

    @property
    def function(self) -> str:
        return "_".join([self.name, *(flag for flag in self._fields[1:] if getattr(self, flag))])


INDICES = {
    "forward": ["begin", "neighbour"],
    "edges": ["begin", "neighbour"],
    "neighbours": ["begin", "order", "centre"],
    "table": ["begin", "order", "centre", "neighbour"],
}


class Part(NamedTuple):
    """Paths of one multiplicity, and the channels start:start+width of them."""

    paths: tuple[Path, ...]
    start: int
    width: int

    @property
    def mask(self) -> bool:
        """Whether the block hangs over."""
        return self.start + self.width > self.paths[0].mul


def make_parts(paths: ConvPaths, kind: Kind, bits: int) -> list[Part]:
    """Every path and channel once: groups of paths whose sums fit into registers, for each block of channels."""
    parts = []
    for mul in dict.fromkeys(path.mul for path in paths.paths):
        same = sorted((path for path in paths.paths if path.mul == mul), key=lambda path: path.i_in)
        for start, width in channel_blocks(mul):
            most = max(1, _REGISTERS // max(1, width // 32) // (bits // 32))
            parts += [Part(tuple(group), start, width) for group in _groups(paths, kind, same, most)]
    return parts


def _groups(paths: ConvPaths, kind: Kind, chosen: list[Path], most: int) -> list[list[Path]]:
    if kind.name == "table":
        return [[path] for path in chosen]
    if kind.name == "neighbours":  # all of an input's, so that its gradient is one sum
        inputs = dict.fromkeys(path.i_in for path in chosen)
        units = [[path for path in chosen if path.i_in == i_in] for i_in in inputs]
        sizes = [2 * paths.irreps_in[i_in].l + 1 for i_in in inputs]
    else:
        units, sizes = [[path] for path in chosen], [2 * paths.irreps_out[path.i_out].l + 1 for path in chosen]
    groups, used = [], most
    for unit, size in zip(units, sizes):
        if used + size > most:
            groups.append([])
            used = 0
        groups[-1] += unit
        used += size
    return groups
