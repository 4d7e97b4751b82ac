"""Irreps, coupling coefficients and rotation matrices against e3nn, group properties and exact identities."""

import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.spatial.transform import Rotation

from ase_equinn.irreps import Irreps, MulIr, clebsch_gordan, wigner_d

TRIPLES = [(a, b, c) for a in range(5) for b in range(5) for c in range(abs(a - b), min(a + b, 4) + 1)]


@pytest.mark.parametrize("l1, l2, l3", TRIPLES)
def test_clebsch_gordan_equals_e3nn_with_its_sign(l1, l2, l3):
    expected = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
    np.testing.assert_allclose(clebsch_gordan(l1, l2, l3), expected, atol=1e-14)  # both exact to round-off


@pytest.mark.parametrize("l1, l2, l3", [(1, 1, 1), (2, 1, 3), (3, 3, 2), (4, 3, 4), (6, 5, 4)])
def test_coupling_is_invariant_and_orthogonal(l1, l2, l3):
    coupling = clebsch_gordan(l1, l2, l3)
    rotation = Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    d1, d2, d3 = (wigner_d(l, rotation) for l in (l1, l2, l3))
    np.testing.assert_allclose(np.einsum("ai,bj,ck,ijk->abc", d1, d2, d3, coupling), coupling, atol=1e-13)
    gram = np.einsum("abi,abj->ij", coupling, coupling)
    np.testing.assert_allclose(gram, np.eye(2 * l3 + 1) / (2 * l3 + 1), atol=1e-14)


@pytest.mark.parametrize("l", range(9))
def test_wigner_d_is_a_homomorphism(l):
    a, b = Rotation.random(2, random_state=l).as_matrix()
    np.testing.assert_allclose(wigner_d(l, a @ b), wigner_d(l, a) @ wigner_d(l, b), atol=1e-12)
    np.testing.assert_allclose(wigner_d(l, a) @ wigner_d(l, a).T, np.eye(2 * l + 1), atol=1e-12)


def test_wigner_d_agrees_with_e3nn():
    rotation = Rotation.random(random_state=3).as_matrix()
    for l in range(6):
        expected = o3.Irrep(l, 1).D_from_matrix(torch.from_numpy(rotation)).numpy()
        np.testing.assert_allclose(wigner_d(l, rotation), expected, atol=1e-5)  # e3nn goes through float32 angles


def test_improper_rotation_flips_odd_irreps():
    rotation = Rotation.random(random_state=1).as_matrix()
    irreps = Irreps("2x0e+1x0o+1x1o+1x1e")
    signs = np.diag([1, 1, -1, -1, -1, -1, 1, 1, 1])
    np.testing.assert_allclose(irreps.D(-rotation), signs @ irreps.D(rotation), atol=1e-14)
    assert irreps.D(rotation).shape == (irreps.dim, irreps.dim) == (9, 9)


def test_parsing_and_bookkeeping():
    irreps = Irreps("64x0e + 32x1o+1o")
    assert list(irreps) == [MulIr(64, 0, 1), MulIr(32, 1, -1), MulIr(1, 1, -1)]
    assert str(irreps) == "64x0e+32x1o+1x1o" and irreps.dim == 64 + 33 * 3 and irreps.lmax == 1
    assert str(irreps.simplify()) == "64x0e+33x1o" and irreps.count(1, -1) == 33 and irreps.count(1, 1) == 0
    assert str(Irreps("1o+0o+2x0e").simplify()) == "2x0e+1x0o+1x1o"
    assert Irreps("") == Irreps([]) and Irreps(irreps) == irreps


@pytest.mark.parametrize("text", ["64x0", "x0e", "8x1z", "8x-1o", "8*1o", "1o++0e"])
def test_unreadable_irreps_are_named(text):
    with pytest.raises(ValueError, match="irreps: cannot read"):
        Irreps(text)


def test_other_bad_input():
    with pytest.raises(ValueError, match=r"l1=1, l2=1, l3=3"):
        clebsch_gordan(1, 1, 3)
    with pytest.raises(ValueError, match="orthogonal"):
        wigner_d(1, np.ones((3, 3)))
    with pytest.raises(ValueError, match="determinant -1"):
        wigner_d(1, -np.eye(3))
    with pytest.raises(ValueError, match=r"\(3, 1, 2\)"):
        Irreps([(3, 1, 2)])
