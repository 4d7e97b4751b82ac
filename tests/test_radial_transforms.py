"""Distance transforms: limits, value at a bond, derivatives at r = 0; radii against ASE's."""

import math

import ase.data
import pytest
import torch

from ase_equinn.radial_transforms import TRANSFORMS, agnesi, covalent_radius, soft


def test_radii_are_those_of_ase():
    assert [covalent_radius(z) for z in range(1, 97)] == ase.data.covalent_radii[1:97].tolist()
    for z in (0, 97):
        with pytest.raises(ValueError, match=f"got {z}"):
            covalent_radius(z)


def test_values():
    """At x = 1, that is half the sum of the radii, Agnesi is 1 / (1 + a / 2); Soft is half way in the middle."""
    r = torch.tensor([0.0, 0.7, 1e3], dtype=torch.float64)
    expected = [1.0, 1 / (1 + 1.0805 / 2), 1 / (1 + 1.0805 * (1e3 / 0.7) ** 0.9183)]
    torch.testing.assert_close(agnesi(r, 1.4), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    middle = 1.4 * (3 / 4 + 4 / 3) / 2
    r = torch.tensor([0.0, middle, 5.0], dtype=torch.float64)
    low = 1.05 - 1.05 * 0.5 * (1 + math.tanh(-4 * middle / (1.4 * 7 / 12)))
    expected = [low, (1.05 + middle) / 2, 5.0]
    torch.testing.assert_close(soft(r, 1.4), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_derivatives(name):
    """Finite to second order, r = 0 included."""
    lengths = torch.tensor([0.0, 1e-8, 0.3, 1.0, 2.2, 6.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(TRANSFORMS[name](lengths, 1.4).sum(), lengths, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), lengths)
    assert torch.isfinite(slope).all() and torch.isfinite(curvature).all()
    inner = lengths.detach()[2:].requires_grad_()
    assert torch.autograd.gradcheck(lambda r: TRANSFORMS[name](r, 1.4), inner)
    assert torch.autograd.gradgradcheck(lambda r: TRANSFORMS[name](r, 1.4), inner)
