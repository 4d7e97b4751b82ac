"""Linear, Gate and RadialNetwork against e3nn, in its own layout, with the same weights."""

import copy

import numpy as np
import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn_layout import to_e3nn

from ase_equinn.irreps import Irreps
from ase_equinn.nn import Gate, Linear, RadialNetwork, SpeciesIndex, second_moment_factor, silu
from ase_equinn.ops.tabulate import (
    Tabulator,
    knots_for_learning,
    silu_series,
    softplus_series,
    tanh_series,
    taylor_function,
)
from ase_equinn.radial import BesselBasis, polynomial_envelope

N = 7


def random_features(irreps, dtype=torch.float64):
    return [torch.randn(N, 2 * l + 1, mul, dtype=dtype) for mul, l, _ in irreps]


def test_linear_equals_e3nn():
    torch.manual_seed(0)
    irreps_in, irreps_out = Irreps("8x0e+3x0o+4x1o+5x2e"), Irreps("6x0e+2x1o+7x2e")
    ours = Linear(irreps_in, irreps_out).double()
    theirs = o3.Linear(str(irreps_in), str(irreps_out)).double()
    with torch.no_grad():
        theirs.weight.copy_(torch.cat([weight.flatten() for weight in ours.weights]))
    x = random_features(irreps_in)
    torch.testing.assert_close(to_e3nn(ours(x)), theirs(to_e3nn(x)), rtol=1e-12, atol=1e-12)


def test_linear_gives_zero_for_an_irrep_that_does_not_come_in():
    out = Linear(Irreps("4x0e"), Irreps("2x0e+3x1o"))([torch.randn(N, 1, 4)])
    assert [tuple(block.shape) for block in out] == [(N, 1, 2), (N, 3, 3)] and not out[1].any()


def test_species_linear_equals_e3nn_with_one_hot_attributes():
    torch.manual_seed(1)
    irreps_in, irreps_out, n_species = Irreps("4x0e+3x1o"), Irreps("5x0e+2x1o"), 3
    ours = Linear(irreps_in, irreps_out, n_species).double()
    theirs = o3.FullyConnectedTensorProduct(str(irreps_in), f"{n_species}x0e", str(irreps_out)).double()
    with torch.no_grad():  # e3nn: (mul_in, n_species, mul_out), normalised by sqrt(mul_in * n_species)
        theirs.weight.copy_(torch.cat([weight.transpose(0, 1).flatten() for weight in ours.weights]))
    x, species = random_features(irreps_in), torch.randint(0, n_species, (N,))
    one_hot = torch.nn.functional.one_hot(species, n_species).double()
    expected = theirs(to_e3nn(x), one_hot) * n_species**0.5
    torch.testing.assert_close(to_e3nn(ours(x, species)), expected, rtol=1e-12, atol=1e-12)


def test_gate_equals_e3nn():
    torch.manual_seed(2)
    ours = Gate(Irreps("4x0e+2x0o+3x1o+2x2e"))
    assert str(ours.irreps_in) == "9x0e+2x0o+3x1o+2x2e"
    x = random_features(ours.irreps_in)
    theirs = e3nn_nn.Gate("4x0e+2x0o", [silu, torch.tanh], "5x0e", [silu], "3x1o+2x2e")
    assert str(theirs.irreps_in) == "2x0o+9x0e+3x1o+2x2e"
    out, expected = to_e3nn(ours(x)), theirs(to_e3nn([x[1], x[0], *x[2:]]))
    # e3nn's factors come from 10^6 samples, ours from quadrature: they agree to a few parts in a thousand
    torch.testing.assert_close(out, expected, rtol=5e-3, atol=1e-3)
    ratio = out[:, 6:] / expected[:, 6:]  # ... and by one common factor per block, so the function is the same
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-9, atol=0)


def test_second_moment_factor():
    assert second_moment_factor(lambda x: x) == pytest.approx(1.0, abs=1e-12)
    assert second_moment_factor(torch.sin) == pytest.approx(((1 - np.exp(-2)) / 2) ** -0.5, rel=1e-12)
    z = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5
    assert torch.trapezoid(silu(z) ** 2 * density, z).item() == pytest.approx(1.0, rel=1e-9)


def test_radial_network_vanishes_at_the_cutoff_with_its_derivatives():
    torch.manual_seed(3)
    network = RadialNetwork(BesselBasis(8, 5.0), lambda r: polynomial_envelope(r, 5.0, 6), [16], 4).double()
    r = torch.tensor([1.3, 4.999, 5.0, 5.2], dtype=torch.float64, requires_grad=True)
    w = network(r)
    (slope,) = torch.autograd.grad(w.sum(), r)
    assert w.shape == (4, 4) and w[0].abs().min() > 0
    assert not w[2:].any() and not slope[2:].any() and w[1].abs().max() < 1e-8


def test_radial_table_is_the_network_to_second_order():
    """At the knots exactly, between them to the error of the interpolation; derivatives go through the layers analytically."""
    torch.manual_seed(4)
    network = RadialNetwork(BesselBasis(8, 5.0), lambda r: polynomial_envelope(r, 5.0, 6), [32, 32], 20).double()
    r = torch.linspace(0.3, 4.999, 400, dtype=torch.float64, requires_grad=True)

    def derivatives(function):
        value = function(r)[:, 3]
        (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), r)
        return value, slope, curvature

    scales = [quantity.abs().max().item() for quantity in derivatives(network)]
    errors = {}
    for n_knots in (128, 256):
        network.tabulate = Tabulator(network.inputs, 5.0, n_knots)
        pairs = zip(derivatives(network), derivatives(network.table()), scales)
        errors[n_knots] = [(a - b).abs().max().item() / scale for a, b, scale in pairs]
    assert errors[256][0] < 1e-9 and errors[256][1] < 1e-7 and errors[256][2] < 1e-5  # what the default of 256 gives
    gain = [a / b for a, b in zip(errors[128], errors[256])]
    assert gain[0] > 40 and gain[1] > 20 and gain[2] > 10  # orders 6, 5, 4 in the spacing: 64, 32, 16
    knots = torch.arange(256, dtype=torch.float64) * network.table().spacing
    torch.testing.assert_close(network.table()(knots), network(knots), rtol=1e-12, atol=1e-12)


def test_slopes_of_a_frozen_table_in_float32():
    """Their only error is that of the rounded values, two of which are subtracted and divided by the spacing."""
    torch.manual_seed(5)
    network = RadialNetwork(BesselBasis(8, 5.0), lambda r: polynomial_envelope(r, 5.0, 6), [64, 64, 64], 20)
    network.requires_grad_(False)
    exact = copy.deepcopy(network).double()

    def slopes(function, dtype):
        r = torch.linspace(0.5, 4.9, 5000).to(dtype).requires_grad_()
        ones = torch.ones(20, 5000, 20, dtype=dtype) * torch.eye(20, dtype=dtype)[:, None]
        (slope,) = torch.autograd.grad(function(r), r, ones, is_grads_batched=True)
        return slope.double()

    largest = network.table().values[:, 0].abs().amax(0)[:, None]
    error = (slopes(network.table(), torch.float32) - slopes(exact.table(), torch.float64)).abs() / largest
    rounding = torch.finfo(torch.float32).eps / network.table().spacing
    assert error.max() < 2 * rounding and error.square().mean().sqrt() < 0.1 * rounding


def test_radial_table_follows_its_weights():
    network = RadialNetwork(BesselBasis(4, 5.0), lambda r: polynomial_envelope(r, 5.0, 6), [8], 3)
    assert network.table().values.requires_grad
    network.requires_grad_(False)
    first = network.table()
    assert network.table() is first
    with torch.no_grad():
        network.weights[1].mul_(2.0)
    torch.testing.assert_close(network.table().values, 2 * first.values)
    assert network.double().table().values.dtype == torch.float64


@pytest.mark.parametrize("shortest", [0.0, 1.9, 4.999, 7.0])
def test_radial_table_for_given_distances_leaves_out_knots(shortest):
    """What is left gives the same values and gradients; frozen weights keep one table for all distances."""
    torch.manual_seed(6)
    network = RadialNetwork(BesselBasis(4, 5.0), lambda r: polynomial_envelope(r, 5.0, 6), [8], 3).double()
    lengths = shortest + torch.tensor([0.0, 0.7, 0.3], dtype=torch.float64)
    whole, part = network.table(), network.table(lengths)
    spacing, kept = whole.spacing, part.values.shape[0]
    assert (256 - kept) * spacing <= shortest and (kept == 2 or (258 - kept) * spacing > shortest)
    inside = lengths.clamp(max=5.0)
    torch.testing.assert_close(part(inside), whole(inside), rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad(table(inside).sum(), [*network.weights]) for table in (whole, part)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    network.requires_grad_(False)
    assert network.table(lengths).values.shape[0] == 256 and network.table(lengths[:0]) is network.table()


def test_radial_table_without_distances():
    network = RadialNetwork(BesselBasis(4, 5.0), lambda r: polynomial_envelope(r, 5.0, 6), [8], 3)
    assert network.double().table(torch.zeros(0)).values.shape[0] == 256


def test_half_of_the_knots_are_no_loss_where_float32_weights_are_learned():
    """Slopes of tables from float32 layers against the exact ones: both errors are rounding, 1e-5 of the largest weight."""
    torch.manual_seed(7)
    network = RadialNetwork(BesselBasis(8, 5.0), lambda r: polynomial_envelope(r, 5.0, 6), [64], 16)
    whole = Tabulator(network.inputs, 5.0, 256)(network._taylor, [*network.weights])
    half, errors = network.table(), []
    assert len(whole.values) == 256 and len(half.values) == half.n_knots == 128
    assert [knots_for_learning(n) for n in (2, 24, 128, 200, 512)] == [2, 24, 128, 128, 256]
    lengths = torch.linspace(0.5, 4.99, 1501, dtype=torch.float64)

    def slopes(function, lengths):
        lengths = lengths.clone().requires_grad_()
        out = function(lengths)
        return torch.stack([torch.autograd.grad(x.sum(), lengths, retain_graph=True)[0] for x in out.unbind(1)], dim=1)

    found = [slopes(table._replace(values=table.values.double()), lengths) for table in (half, whole)]
    exact = slopes(network.double(), lengths)
    errors = [((ours - exact).abs().max() / exact.abs().max()).item() for ours in found]
    assert errors[0] < 1.2 * errors[1] < 1e-5, errors


@pytest.mark.parametrize("series", [silu_series, tanh_series, softplus_series])
def test_functions_of_taylor_tensors(series):
    """Against derivatives by autograd of f along a parabola, and their gradients against differences."""
    torch.manual_seed(8)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: taylor_function(x, series), x)
    t = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    expected = [series(x[:, 0] + x[:, 1] * t + 0.5 * x[:, 2] * t**2)[0]]
    for _ in range(2):
        expected.append(torch.autograd.grad(expected[-1].sum(), t, create_graph=True)[0])
    torch.testing.assert_close(taylor_function(x, series), torch.stack(expected, dim=1), rtol=1e-12, atol=1e-12)


def test_what_frozen_layers_keep_follows_the_weights_and_serves_under_autograd():
    layer = Linear(Irreps("3x0e+2x1o"), Irreps("4x0e+2x1o"), 2).requires_grad_(False)
    network = RadialNetwork(BesselBasis(4, 5.0), lambda r: polynomial_envelope(r, 5.0, 6), [8], 3).requires_grad_(False)
    x, species = random_features(layer.irreps_in, torch.float32), torch.arange(N) % 2
    with torch.inference_mode():
        before = [block.clone() for block in layer(x, species)]
        network.table()
    x[0].requires_grad_()
    layer(x, species)[0].sum().backward()
    lengths = torch.rand(5, requires_grad=True)
    network.table()(lengths).sum().backward()
    assert x[0].grad.any() and lengths.grad.any()
    with torch.no_grad():
        layer.weights[0].mul_(3.0)
        torch.testing.assert_close(layer(x, species)[0], 3 * before[0])
        torch.testing.assert_close(layer(x, species)[1], before[1])
        torch.testing.assert_close(layer(x, species, scale=0.5)[1], before[1] / 2)
    assert [tuple(b.shape) for b in layer([b[:0] for b in x], species[:0])] == [(0, 1, 4), (0, 3, 2)]


def test_species_index():
    index = SpeciesIndex([8, 1, 6])
    assert index.species == (1, 6, 8)
    assert index(torch.tensor([6, 1, 8, 14])).tolist() == [1, 0, 2, -1]
    for bad in ([], [6, 6], [0], [119]):
        with pytest.raises(ValueError, match="species"):
            SpeciesIndex(bad)
