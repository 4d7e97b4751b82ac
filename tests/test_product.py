"""The symmetric product: equivariant, complete, equal to brute force over all couplings, differentiable twice."""

import numpy as np
import pytest
import torch

from ase_equinn.irreps import Irreps, clebsch_gordan, wigner_d
from ase_equinn.ops import product_fused
from ase_equinn.ops.product import product
from ase_equinn.ops.product_table import ProductTable

BACKENDS = ("auto", "reference")

CASES = {  # irreps_in, irreps_out, correlation
    "one factor": ("4x0e+4x1o", "1x1o", 1),
    "two factors": ("3x0e+3x1o+3x2e", "1x0e+1x1o", 2),
    "three factors": ("4x0e+4x1o+4x2e", "1x0e+1x1o+1x2e", 3),
    "four factors": ("2x0e+2x1o", "1x0e+1x1o", 4),
    "both parities": ("2x0e+2x0o+2x1e+2x1o", "1x0e+1x0o+1x1e", 3),
}


def setup(case, n_atoms=6, n_species=3):
    torch.manual_seed(0)
    irreps_in, irreps_out, correlation = CASES[case]
    table = ProductTable(Irreps(irreps_in), Irreps(irreps_out), correlation)
    x = [torch.randn(n_atoms, 2 * l + 1, mul, dtype=torch.float64) for mul, l, _ in table.irreps_in]
    weights = [torch.randn(n_species, len(rows), table.n_channels, dtype=torch.float64) for rows in table.outputs]
    return table, x, weights, torch.arange(n_atoms) % n_species


def orthogonal(seed=0):
    """A rotation times the inversion."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return -q * np.sign(np.linalg.det(q))


def transform(blocks, irreps, matrix):
    """Every block by D of an improper rotation."""
    return [p * torch.from_numpy(wigner_d(l, -matrix)) @ block for block, (_, l, p) in zip(blocks, irreps)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_is_equivariant(case, backend):
    table, x, weights, species = setup(case)
    matrix = orthogonal()
    turned = product(table, transform(x, table.irreps_in, matrix), weights, species, backend)
    out = product(table, x, weights, species, backend)
    for ours, expected in zip(turned, transform(out, table.irreps_out, matrix)):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())


def symmetric_power(irreps, n_factors, angles, parity):
    """Trace of rotations (times the inversion if parity is -1) on the symmetric power: n h_n = sum_k p_k h_(n-k)."""

    def power_sum(k):
        signs = [1 if parity == 1 or p == 1 else (-1) ** k for _, _, p in irreps]
        return sum(s * np.cos(k * m * angles) for s, (_, l, _) in zip(signs, irreps) for m in range(-l, l + 1))

    complete = [np.ones_like(angles)]
    for n in range(1, n_factors + 1):
        complete.append(sum(power_sum(k) * complete[n - k] for k in range(1, n + 1)) / n)
    return complete[n_factors]


@pytest.mark.parametrize("case", CASES)
def test_couplings_are_all_there_are(case):
    """Their number is the multiplicity of the irrep in the symmetric powers, integrated from the characters."""
    table = setup(case)[0]
    n = 100
    angles = (np.arange(n) + 0.5) * np.pi / n
    measure = (1 - np.cos(angles)) / n  # Haar measure of SO(3) by angle; this sum is exact for such polynomials
    for rows, (_, l, p) in zip(table.outputs, table.irreps_out):
        own = sum(np.cos(m * angles) for m in range(-l, l + 1))
        for n_factors in range(1, table.correlation + 1):
            proper, improper = (symmetric_power(table.irreps_in, n_factors, angles, parity) for parity in (1, -1))
            count = (measure * own * (proper + p * improper)).sum() / 2
            found = sum(len(table.nodes[k].factors) == n_factors for k in rows)
            assert abs(count - found) < 1e-9, (l, p, n_factors)


def all_couplings(irreps, l_out, n_factors):
    """Every left coupling of every order of factors: (2l+1, D, ..., D, K), dependent and not symmetric."""
    starts = np.cumsum([0, *(2 * l + 1 for _, l, _ in irreps)])
    dimension = starts[-1]
    tensors = []
    for k, (_, l, p) in enumerate(irreps):
        tensors.append((l, p, np.eye(dimension)[starts[k] : starts[k + 1]]))
    for _ in range(n_factors - 1):
        longer = []
        for l_left, p_left, left in tensors:
            for k, (_, l, p) in enumerate(irreps):
                for total in range(abs(l_left - l), l_left + l + 1):
                    coupling = clebsch_gordan(l_left, l, total)
                    right = np.eye(dimension)[starts[k] : starts[k + 1]]
                    longer.append((total, p_left * p, np.einsum("a...,bj,abm->m...j", left, right, coupling)))
        tensors = longer
    return np.stack([tensor for l, p, tensor in tensors if (l, p) == l_out], axis=-1)


def test_weights_of_foreign_couplings_give_the_same_function():
    """MACE's sum over nu of U_nu W_nu x^nu with all (dependent, asymmetric) couplings, by brute force."""
    table, x, _, species = setup("two factors")
    table = ProductTable(table.irreps_in, table.irreps_out, 3)
    given, ours = [], []
    for i_out, (_, l, p) in enumerate(table.irreps_out):
        couplings = [all_couplings(table.irreps_in, (l, p), nu) for nu in (1, 2, 3)]
        weights = [torch.randn(3, c.shape[-1], 3, dtype=torch.float64) for c in couplings]
        features = torch.cat(x, dim=1)
        total = 0.0
        for nu, (coupling, weight) in enumerate(zip(couplings, weights), start=1):
            factors = ",".join(f"n{d}c" for d in "abd"[:nu])
            equation = f"m{'abd'[:nu]}k,nkc,{factors}->nmc"
            total = total + torch.einsum(equation, torch.from_numpy(coupling), weight[species], *[features] * nu)
        given.append(total)
        squeezed = [c[0] if l == 0 else c for c in couplings]  # MACE drops the axis of a scalar
        ours.append(table.weights_from(i_out, squeezed, weights))
        assert ours[-1].shape == (3, len(table.outputs[i_out]), 3)
    for found, expected in zip(product(table, x, ours, species), given):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_couplings_that_are_not_equivariant_are_refused():
    table = setup("two factors")[0]
    with pytest.raises(ValueError, match="not equivariant"):
        table.weights_from(0, [np.ones((9, 1))], [torch.ones(3, 1, 3)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_and_second_derivatives(backend):
    table, x, weights, species = setup("two factors", n_atoms=3)
    inputs = [t.requires_grad_() for t in (*x, *weights)]

    def function(*tensors):
        return tuple(product(table, tensors[: len(x)], tensors[len(x) :], species, backend))

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_generated_kernels_equal_the_reference_to_second_order(case, monkeypatch):
    """Every input's gradient, and gradients of those gradients along random directions; two threads."""
    monkeypatch.setattr(product_fused, "_MIN_ATOMS", 2)
    table, x, weights, species = setup(case)
    found = {}
    for backend in BACKENDS:
        inputs = [t.clone().requires_grad_() for t in (*x, *weights)]
        out = product(table, inputs[: len(x)], inputs[len(x) :], species, backend)
        torch.manual_seed(1)
        g = [torch.randn_like(block).requires_grad_() for block in out]
        first = torch.autograd.grad(out, inputs, g, create_graph=True, materialize_grads=True)
        along = [torch.randn_like(t) for t in first]
        settings = dict(retain_graph=True, materialize_grads=True)
        second = torch.autograd.grad(first, inputs + g, along, **settings)
        of_features = torch.autograd.grad(first[: len(x)], inputs + g, along[: len(x)], **settings)  # a loss on forces
        found[backend] = [*out, *first, *second, *of_features]
    for ours, expected in zip(found["auto"], found["reference"], strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12 * scale)  # sums in another order


def test_gradient_of_features_alone():
    """What molecular dynamics takes: frozen weights."""
    table, x, weights, species = setup("two factors")
    found = []
    for backend in BACKENDS:
        inputs = [block.clone().requires_grad_() for block in x]
        out = product(table, inputs, weights, species, backend)
        found.append(torch.autograd.grad(sum(block.square().sum() for block in out), inputs))
    for ours, expected in zip(*found):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11 * expected.abs().max().item())


def test_float32_kernels_are_as_exact_as_float32():
    table, x, weights, species = setup("both parities")
    exact = product(table, x, weights, species, "reference")
    out = product(table, [block.float() for block in x], [w.float() for w in weights], species, "auto")
    for ours, expected in zip(out, exact):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_any_number_of_channels():
    """Multiplicities that fill vectors, and what remains of them."""
    for mul in (1, 7, 8, 21):
        CASES["wide"] = (f"{mul}x0e+{mul}x1o", "1x0e+1x1o", 2)
        arguments = setup("wide")
        ours, expected = (torch.cat(product(*arguments, backend), dim=1) for backend in BACKENDS)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    del CASES["wide"]


def test_the_same_input_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(product_fused, "_MIN_ATOMS", 2)
    table, x, weights, species = setup("both parities")
    results = []
    for _ in range(3):
        inputs = [t.clone().requires_grad_() for t in (*x, *weights)]
        out = product(table, inputs[: len(x)], inputs[len(x) :], species)
        results.append([*out, *torch.autograd.grad(sum(block.sum() for block in out), inputs)])
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_atoms_and_unknown_species(backend):
    table, x, weights, species = setup("two factors")
    none = product(table, [block[:0] for block in x], weights, species[:0], backend)
    assert [tuple(block.shape) for block in none] == [(0, 1, 3), (0, 3, 3)]
    with pytest.raises((ValueError, IndexError), match="species|index"):
        product(table, x, weights, species - 1, backend)


def test_bad_tables():
    with pytest.raises(ValueError, match="one multiplicity"):
        ProductTable("4x0e+3x1o", "1x0e", 2)
    with pytest.raises(ValueError, match="correlation must be at least 1, got 0"):
        ProductTable("4x0e", "1x0e", 0)
    with pytest.raises(ValueError, match="no product of 4x0e gives 4x1o"):
        ProductTable("4x0e", "1x1o", 3)
    assert ProductTable("4x0e", "1x0e", 2).__getstate__()["_couplings"] == {}
