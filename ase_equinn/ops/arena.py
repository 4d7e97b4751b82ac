"""Where the numbers of a block of atoms are kept: buffers that are not needed at the same time share a place."""

from __future__ import annotations

from .plan import Plan

_ALIGN = 16  # numbers per atom: places begin at full vectors


def arena(plan: Plan) -> tuple[dict[int, int], int]:
    """For every buffer of a block its place, and the size of all, both in numbers per atom.

    First fit over the steps: a buffer occupies its place from the first to the last step that uses it.
    """
    lives: dict[int, list[int]] = {}
    for k, step in enumerate(plan.steps):
        for view in (*step.reads, *step.writes):
            if view.buffer not in plan.shared and view.buffer not in plan.private:
                lives.setdefault(view.buffer, [k, k])[1] = k
    places: dict[int, int] = {}
    size = 0
    for buffer, (first, last) in sorted(lives.items(), key=lambda item: item[1]):
        length = -(-plan.rows[buffer] // _ALIGN) * _ALIGN
        taken = sorted(
            (places[other], places[other] + -(-plan.rows[other] // _ALIGN) * _ALIGN)
            for other in places
            if lives[other][0] <= last and first <= lives[other][1]
        )
        start = 0
        for begin, end in taken:
            if start + length <= begin:
                break
            start = max(start, end)
        places[buffer] = start
        size = max(size, start + length)
    return places, size
