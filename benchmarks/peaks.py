"""What one core of this machine does at best, measured: multiply-adds, sgemm, loads, and triads by their size."""

from __future__ import annotations

import time
from typing import Callable

import torch

from ase_equinn.ops.emitter import Emitter
from ase_equinn.ops.jit import compile_function, vector_bytes
from ase_equinn.ops.pointwise_kernels import Add

_LANES = vector_bytes() // 4
_CHAINS = 12  # independent sums: more than a multiply-add takes cycles, on every pipeline
_SMALL = 12 * 1024  # bytes that stay in the first cache


def least(function: Callable[[], None], rounds: int) -> float:
    """CPU seconds of this thread, of the fastest round: others may use the machine, as far as caches and clocks allow."""
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return min(times)


class Peaks:
    """Attributes:
    fma: FLOP/s of multiply-adds between registers: what no kernel exceeds.
    sgemm: FLOP/s of torch.mm of 512 x 512 matrices, one for each time that it was measured.
    loads: bytes/s from the first cache into registers.
    triads: bytes/s of y = a x + y, by bytes of both arrays; three moves for each number.
    """

    def __init__(self) -> None:
        self.fma, self.loads = _multiply_adds(), _loads()
        self.triads = {1 << bits: _triad(1 << bits) for bits in range(14, 28, 2)}
        self.matrices, self.sgemm = torch.randn(3, 512, 512).unbind(), []
        self.measure()

    def measure(self) -> None:
        a, b, c = self.matrices
        self.sgemm.append(2 * 512**3 / least(lambda: torch.mm(a, b, out=c), 20))

    def triad(self, n_bytes: float) -> float:
        """Bytes/s of the next larger triad."""
        return self.triads[min((size for size in self.triads if size >= n_bytes), default=max(self.triads))]


def _multiply_adds() -> float:
    e = Emitter("multiply_adds", 1, 2, 32, _LANES)
    factor, slots = e.splat(e.load(e.pointers[0], 0), _LANES), [e.variable(_LANES) for _ in range(_CHAINS)]
    for k, slot in enumerate(slots):
        e.set(slot, e.const(k, _LANES))
    with e.loop(*e.integers):
        for slot in slots:
            e.set(slot, e.fma(e.get(slot, _LANES), factor, factor))
    for k, slot in enumerate(slots):
        e.store(e.get(slot, _LANES), e.pointers[0], k * _LANES)
    run, n, numbers = compile_function(e.name, e.finish(), 1, 2), 200_000, torch.full((_CHAINS * _LANES,), 0.5)
    return 2 * _CHAINS * _LANES * n / least(lambda: run(numbers.fill_(0.5).data_ptr(), 0, n), 30)


def _loads() -> float:
    """Sums of full vectors, over and over from the same few."""
    e, n_vectors = Emitter("loads", 2, 2, 32, _LANES), _SMALL // (4 * _LANES) // _CHAINS * _CHAINS
    slots = [e.variable(_LANES) for _ in range(_CHAINS)]
    for slot in slots:
        e.set(slot, e.const(0, _LANES))
    with e.loop(*e.integers):
        with e.loop(0, n_vectors * _LANES, _CHAINS * _LANES) as start:
            for k, slot in enumerate(slots):
                e.set(slot, e.b.fadd(e.get(slot, _LANES), e.load(e.pointers[0], e.add(start, k * _LANES), _LANES)))
    for k, slot in enumerate(slots):
        e.store(e.get(slot, _LANES), e.pointers[1], k * _LANES)
    run, n = compile_function(e.name, e.finish(), 2, 2), 4000
    numbers, out = torch.ones(n_vectors * _LANES), torch.empty(_CHAINS * _LANES)
    return 4 * n_vectors * _LANES * n / least(lambda: run(numbers.data_ptr(), out.data_ptr(), 0, n), 30)


def _triad(n_bytes: int) -> float:
    n, times = n_bytes // 8, max(1, (1 << 23) // n_bytes)
    x, y = torch.zeros(n), torch.zeros(n)
    kernel = Add(n, 0, 0, 0.5, accumulate=True, bits=32, lanes=_LANES)  # every row is the same one
    run = compile_function(kernel.e.name, kernel.source(), kernel.n_pointers, kernel.n_integers)
    return 12 * n * times / least(lambda: run(x.data_ptr(), y.data_ptr(), 0, times), 30)
