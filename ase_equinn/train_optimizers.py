"""Optimizers of a training run: AdamW, and Muon for the matrices of the network."""

from __future__ import annotations

from collections import defaultdict
from typing import Iterable, Sequence

import torch
from torch import Tensor

from .train_config import TrainingConfig

SMALLEST = 8  # rows and columns that a matrix needs to be one for Muon
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2  # of Muon's steps in units of the learning rate; about that of AdamW's


def make_optimizer(config: TrainingConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that the config names, with one parameter group."""
    if config.optimizer == "muon":
        return Muon(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, amsgrad=config.amsgrad, fused=True
    )


class Muon(torch.optim.Optimizer):
    """A matrix moves along the orthogonal factor of its averaged gradient, every other parameter as in AdamW.

        M <- b M + (1 - b) G,    W <- W - lr (0.2 sqrt(max(rows, columns)) orth(b M + (1 - b) G) + weight_decay W)

    orth(X) = U V^T of X = U S V^T, approximated by five Newton-Schulz iterations. The last two dimensions are the
    matrix, the ones before (species) count the matrices. Not matrices: fewer than two dimensions, or fewer than
    SMALLEST rows or columns.

    Args:
        parameters: all of one dtype.
        lr: of both kinds; the factor makes a step's root mean square about that of AdamW.
        momentum: b.
        betas, eps: AdamW's, for what is not a matrix.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the factor: Liu et al., "Muon
    is scalable for LLM training", arXiv:2502.16982, eq. 4.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One step; `closure` re-evaluates the loss, as torch's optimizers take it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"]:
                torch._foreach_mul_(with_gradient, 1.0 - group["lr"] * group["weight_decay"])
            self._matrices([p for p in with_gradient if is_matrix(p)], group)
            self._others([p for p in with_gradient if not is_matrix(p)], group)
        return loss

    def _matrices(self, parameters: list[Tensor], group: dict) -> None:
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in parameters]
        moments = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(moments, gradients, 1.0 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, moments, group["momentum"])
        by_shape = defaultdict(list)
        for p, x in zip(parameters, ahead):
            by_shape[p.shape[-2:]].append((p, x))
        for (rows, columns), members in by_shape.items():
            stacked = torch.cat([x.reshape(-1, rows, columns) for _, x in members])
            steps = orthogonal_factor(stacked).split([x.numel() // (rows * columns) for _, x in members])
            scale = group["lr"] * UPDATE_RMS * max(rows, columns) ** 0.5
            for (p, _), step in zip(members, steps):
                p.sub_(step.reshape(p.shape), alpha=scale)

    def _others(self, parameters: list[Tensor], group: dict) -> None:
        beta1, beta2 = group["betas"]
        for p in parameters:
            state = self.state[p]
            if not state:
                state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            state["step"] += 1
            t = float(state["step"])
            state["mean"].lerp_(p.grad, 1.0 - beta1)
            state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1.0 - beta2)
            deviation = (state["square"] / (1.0 - beta2**t)).sqrt_().add_(group["eps"])
            p.addcdiv_(state["mean"], deviation, value=-group["lr"] / (1.0 - beta1**t))


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon treats it as a matrix, or as several."""
    return parameter.ndim >= 2 and min(parameter.shape[-2:]) >= SMALLEST


def orthogonal_factor(x: Tensor) -> Tensor:
    """About U V^T of x = U S V^T, (n, rows, columns): all singular values end between 0.7 and 1.2.

    Those below a thousandth of the Frobenius norm stay smaller; zero stays zero.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal_factor(x.mT).mT
    a, b, c = NEWTON_SCHULZ
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-20)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x
