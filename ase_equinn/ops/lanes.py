"""IR that moves numbers between the lanes of full vectors: sums of many vectors at once, transposition."""

from __future__ import annotations

from .emitter import Emitter


def widen(e: Emitter, value, width: int):
    """A narrower vector, or a number, followed by zeros up to a full vector."""
    if width == e.lanes:
        return value
    if width == 1:
        return e.b.insert_element(e.const(0, e.lanes), value, e.int(0))
    return e.shuffle(value, e.const(0, width), [min(lane, width) for lane in range(e.lanes)])


def sums_of(e: Emitter, vectors: list) -> tuple[object, list[int]]:
    """The sums over the lanes of up to `lanes` vectors, and which lane of the result holds which of them.

    Two vectors of partial sums become one with half as many of each, which takes three instructions: less than three a
    sum for a full set. Halves are taken of blocks of lanes, and stand where a single instruction can bring them.
    """
    n, in_one = e.lanes, 16 // e.bytes  # lanes that cheap instructions mix: those of 128 bits
    owners = [[k] * n for k in range(len(vectors))]
    block = n
    while block > 1:
        half, chunk = block // 2, n if block > in_one else in_one
        low, high = [], []
        for start in range(0, n, chunk):
            blocks = range(start, start + chunk, block)
            for origin in (0, n):
                low += [origin + first + lane for first in blocks for lane in range(half)]
                high += [origin + first + half + lane for first in blocks for lane in range(half)]
        merged, owned = [], []
        for k in range(0, len(vectors), 2):
            other = k + 1 if k + 1 < len(vectors) else k
            a, b = vectors[k], vectors[other]
            merged.append(e.b.fadd(e.shuffle(a, b, low), e.shuffle(a, b, high)))
            owned.append([(owners[k] + owners[other])[lane] for lane in low])
        vectors, owners, block = merged, owned, half
    return vectors[0], [owners[0].index(k) for k in sorted(set(owners[0]))]


def transpose(e: Emitter, vectors: list) -> list:
    """`lanes` vectors as the rows of a square; its columns."""
    out, n = list(vectors), e.lanes
    block = n // 2
    while block:
        low = [lane if not lane & block else n + lane - block for lane in range(n)]
        high = [lane + block if not lane & block else n + lane for lane in range(n)]
        for k in range(n):
            if not k & block:
                a, b = out[k], out[k + block]
                out[k], out[k + block] = e.shuffle(a, b, low), e.shuffle(a, b, high)
        block //= 2
    return out
