"""train_optimizers: Muon against singular value decompositions and torch's AdamW."""

import pytest
import torch

from ase_equinn.train_config import TrainingConfig
from ase_equinn.train_optimizers import Muon, is_matrix, make_optimizer, orthogonal_factor


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_orthogonal_factor_has_the_singular_vectors_and_values_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ orthogonal_factor(x) @ vh.mT  # diagonal: the iteration is a polynomial in x x^T, times x
    diagonal = torch.diagonal(inner, dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-9
    assert diagonal.min() > 0.6 and diagonal.max() < 1.25


def test_a_zero_gradient_moves_nothing():
    assert (orthogonal_factor(torch.zeros(1, 8, 8)) == 0).all()


def test_matrices_move_along_the_orthogonal_factor():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(2, 32, 8, dtype=torch.float64))
    before, gradient = weight.detach().clone(), torch.randn_like(weight)
    weight.grad = gradient
    Muon([weight], lr=0.1, momentum=0.9).step()
    ahead = 0.1 * gradient + 0.9 * 0.1 * gradient  # (1 - b) G + b M after the first step, M = (1 - b) G
    step = before - weight.detach()
    torch.testing.assert_close(step, 0.1 * 0.2 * 32**0.5 * orthogonal_factor(ahead))
    assert 0.7 < step.square().mean().sqrt() / (0.1 * 0.2) < 1.2  # its size is the learning rate's, as AdamW's


def test_everything_else_moves_as_in_adamw():
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(n)) for n in (3, 5)] for _ in range(2))
    optimizers = Muon(ours, lr=0.02, weight_decay=0.1), torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(7):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_what_counts_as_a_matrix():
    assert is_matrix(torch.zeros(4, 32, 32)) and is_matrix(torch.zeros(8, 64))
    assert not is_matrix(torch.zeros(64)) and not is_matrix(torch.zeros(64, 1)) and not is_matrix(torch.zeros(4, 32))


def test_muon_learns_a_linear_map():
    torch.manual_seed(0)
    target, x = torch.randn(16, 16), torch.randn(256, 16)
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = make_optimizer(TrainingConfig(optimizer="muon", learning_rate=0.1), [weight])
    losses = []
    for k in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - k / 300)
        optimizer.zero_grad()
        loss = (x @ (weight - target)).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 1e-4 * losses[0]
