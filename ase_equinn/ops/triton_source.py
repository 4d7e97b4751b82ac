"""Triton kernels from generated source: a writer of statements in dual arithmetic, and functions from its text.

No file is written or imported: the source is executed from memory, and Triton reads it back from Python's line cache.
It holds numbers and names of this package's own making only. Triton keeps the machine code in its own cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch

MOST_CHANNELS = 64  # of one program; a warp holds two per thread
_HEAD = "@triton.jit(do_not_specialize={indices})\ndef {name}({arguments}):\n"


class Dual(NamedTuple):
    """Expressions of a number (or one per channel) and of its derivative in a direction, None where that is zero."""

    value: str
    tangent: str | None = None


@cache
def installed() -> bool:
    """Whether the triton package is there."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device: for tests, thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Writer:
    """Lines of one kernel; every name is assigned once, but for sums."""

    def __init__(self, bits: int):
        self.lines: list[str] = []
        self.depth, self.n_names, self.bits = 1, 0, bits

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Indents what is written inside under `head`."""
        self.line(head)
        self.depth += 1
        yield
        self.depth -= 1

    def let(self, expression: str) -> str:
        """A new name for the expression's value."""
        self.n_names += 1
        name = f"v{self.n_names}"
        self.line(f"{name} = {expression}")
        return name

    def zeros(self, width: int) -> str:
        """The name of a sum that begins at zero, one number per channel."""
        return self.let(f"tl.full(({width},), 0.0, tl.float{self.bits})")

    def let_dual(self, dual: Dual) -> Dual:
        return Dual(self.let(dual.value), None if dual.tangent is None else self.let(dual.tangent))

    def combine(self, terms: Sequence[tuple[Dual | float, Dual]], start: Dual | None = None) -> Dual:
        """start + sum of a b, by the product rule; at least one term."""
        value = [start.value] if start else []
        tangent = [start.tangent] if start and start.tangent is not None else []
        for a, b in terms:
            a = a if isinstance(a, Dual) else Dual(repr(float(a)))
            value.append(f"{a.value} * {b.value}")
            tangent += [f"{a.value} * {b.tangent}"] if b.tangent is not None else []
            tangent += [f"{a.tangent} * {b.value}"] if a.tangent is not None else []
        return self.let_dual(Dual(" + ".join(value), " + ".join(tangent) or None))

    def add(self, name: str, a: Dual, b: Dual, dual: bool) -> None:
        """name += a b, or its derivative if `dual`."""
        if not dual:
            self.line(f"{name} += {a.value} * {b.value}")
            return
        terms = [f"{a.value} * {b.tangent}"] if b.tangent is not None else []
        terms += [f"{a.tangent} * {b.value}"] if a.tangent is not None else []
        if terms:
            self.line(f"{name} += {' + '.join(terms)}")

    def load(self, address: str, mask: str | None = None) -> str:
        return self.let(f"tl.load({address})" if mask is None else f"tl.load({address}, mask={mask}, other=0.0)")

    def store(self, address: str, value: str, mask: str | None = None) -> None:
        self.line(f"tl.store({address}, {value})" if mask is None else f"tl.store({address}, {value}, mask={mask})")

    def source(self, name: str, arguments: Sequence[str], indices: Sequence[str]) -> str:
        """The whole function. `indices`: arguments about whose alignment nothing is assumed, as it varies by call."""
        head = _HEAD.format(indices=[*indices], name=name, arguments=", ".join(arguments))
        return head + "\n".join(self.lines) + "\n"


def channel_blocks(mul: int, most: int = MOST_CHANNELS) -> list[tuple[int, int]]:
    """(start, width) of the blocks that cover `mul` channels; widths are powers of two, the last block may overhang."""
    width = min(most, 1 << (mul - 1).bit_length())
    return [(start, width) for start in range(0, mul, width)]


def jit_function(name: str, source: str):
    """The kernel `name` of a source text.

    Raises:
        ImportError: where triton is not installed; says how to get it.
    """
    try:
        import triton
        from triton import language
    except ImportError as error:
        needed = 'backend "triton" needs the triton package: pip install "ase_equinn[triton]" (Linux)'
        raise ImportError(needed) from error
    file = f"<ase_equinn {name} {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # where inspect.getsource looks
    namespace = {"triton": triton, "tl": language, "__name__": __name__}
    exec(compile(source, file, "exec"), namespace)
    return namespace[name]


def launch(kernel, grid: tuple[int, ...], tensors: Sequence[torch.Tensor], integers: Sequence[int] = ()) -> None:
    """Runs a kernel on the device of its tensors, on the current stream; an empty grid does nothing."""
    if min(grid) == 0:
        return
    device = tensors[-1].device
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[grid](*tensors, *integers, num_warps=1, num_stages=1, enable_fp_fusion=True)
