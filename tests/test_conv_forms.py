"""The factorisations of paths: what they multiply out to, and that they take no more products than the matrices."""

import numpy as np
import pytest

from ase_equinn.irreps import Irreps, clebsch_gordan
from ase_equinn.ops.conv_forms import forms
from ase_equinn.ops.conv_variants import entries
from ase_equinn.ops.paths import ConvPaths

ALL = "+".join(f"1x{l}{p}" for l in range(4) for p in "eo")


@pytest.mark.parametrize("constant", [False, True])
def test_forms_are_the_couplings(constant):
    paths, rng = ConvPaths(Irreps(ALL), 3, Irreps(ALL)), np.random.default_rng(0)
    y = rng.normal(size=16)
    y[0] = 1.0  # what `constant` may rely on
    for path, form in forms(paths, constant).items():
        l_in, l_out = paths.irreps_in[path.i_in].l, paths.irreps_out[path.i_out].l
        x, sums, out = rng.normal(size=2 * l_in + 1), np.zeros(form.n_sums), np.zeros(2 * l_out + 1)
        for k, m1, row in form.products:
            sums[k] += x[m1] * (1.0 if row is None else sum(c * y[m] for m, c in row))
        for k, uses in enumerate(form.sums or [[(m3, 1.0)] for m3 in range(2 * l_out + 1)]):
            for m3, c in uses:
                out[m3] += c * sums[k]
        coupling = clebsch_gordan(l_in, path.l_sh, l_out) * np.sqrt(2 * l_out + 1)
        expected = np.einsum("a,b,abc->c", x, y[path.l_sh**2 : (path.l_sh + 1) ** 2], coupling)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13 * np.abs(x).sum() * np.abs(y).sum())


def test_forms_take_the_fewer_products():
    paths = ConvPaths(Irreps("1x0e+1x1o"), 3, Irreps("1x0e+1x1o+1x2e+1x3o"))
    ours, matrices = forms(paths, constant=True), entries(paths)
    assert all(len(form.products) <= len(matrices[path]) for path, form in ours.items())
    assert sum(len(form.products) for form in ours.values()) == 70 < sum(map(len, matrices.values())) == 76


def test_constant_harmonics_take_no_row():
    paths = ConvPaths(Irreps("2x1o"), 0, Irreps("1x1o"))
    (form,) = forms(paths, constant=True).values()
    assert form.rows == [] and [product[:2] for product in form.products] == [(m, m) for m in range(3)]
    (form,) = forms(paths, constant=False).values()
    assert form.rows == [((0, 1.0),)]
