"""Which gradients a running backward pass wants: a pass for the forces alone asks for none by tables and weights."""

from __future__ import annotations

import torch


def wanted(ctx, n: int) -> list[bool]:
    """For each of the last n inputs of an autograd Function, all of them tensors: does this pass use its gradient?

    ctx.needs_input_grad says whether an input requires a gradient at all; `torch.autograd.grad` may ask for others.
    """
    needs = ctx.needs_input_grad[-n:]
    return [need and _runs(node) for need, (node, _) in zip(needs, ctx.next_functions[-n:], strict=True)]


def _runs(node) -> bool:
    """Whether the pass goes on to a node of the graph; True where torch cannot tell."""
    ask = getattr(torch._C, "_will_engine_execute_node", None)
    try:
        return ask is None or ask(node)
    except RuntimeError:  # a leaf whose gradient was asked for by name
        return True
