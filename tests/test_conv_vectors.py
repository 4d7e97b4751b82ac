"""Convolution kernels that take edge vectors: values and gradients against autograd through harmonics and reference."""

import struct

import pytest
import torch
from test_conv import CASES, several_tables, small_graph

from ase_equinn.angular import spherical_harmonics
from ase_equinn.irreps import Irreps
from ase_equinn.ops.conv import reference
from ase_equinn.ops.conv_kernels import ConvKernel
from ase_equinn.ops.conv_variants import Variant
from ase_equinn.ops.jit import compile_function, vector_bytes
from ase_equinn.ops.paths import ConvPaths
from ase_equinn.ops.radial_table import RadialTable


def run(paths, variant, graph, tensors, table, centres):
    """Calls a kernel on the centres first..last; tensors stand between the scratch and `first`."""
    bits = 64 if table.values.dtype == torch.float64 else 32
    kernel = ConvKernel(paths, variant, bits, vector_bytes() // (bits // 8))
    function = compile_function(variant.name, kernel.source(), kernel.n_pointers, kernel.n_integers)
    scratch = torch.full((ConvKernel.scratch_size(kernel.n_rows),), float("nan"), dtype=table.values.dtype)
    pointers = [graph.row_ptr, graph.edge_index[1].contiguous(), scratch, *tensors]
    pointers += [table.first] if variant.tables else []
    n_knots = table.n_knots if variant.tables else len(table.values)
    inverse = struct.unpack("<q", struct.pack("<d", 1.0 / table.spacing))[0]
    integers = [*centres, graph.edge_index.shape[1], n_knots - 1, inverse]
    function(*(tensor.data_ptr() for tensor in pointers), *integers)


def setup(irreps_in, lmax, irreps_out, *, n_rows=4, n_edges=300, tables=False):
    """Five centres, the last without edges; rows of x that are no atoms; edges of length 0 and beyond the last knot."""
    torch.manual_seed(0)
    paths = ConvPaths(Irreps(irreps_in), lmax, Irreps(irreps_out))
    graph, vectors = small_graph(5, n_edges)
    rows = torch.stack([graph.edge_index[0], torch.randint(0, n_rows, (n_edges,))])
    vectors[3], vectors[n_edges - 1] = 0.0, torch.tensor([3.0, -3.0, 2.0])
    x = [torch.randn(n_rows, 2 * l + 1, mul, dtype=torch.float64) for mul, l, _ in paths.irreps_in]
    table = RadialTable(torch.randn(9, 3, paths.n_weights, dtype=torch.float64), 0.5)
    return paths, graph._replace(edge_index=rows), vectors, x, several_tables(table, n_edges) if tables else table


def expected(paths, graph, vectors, x, table):
    """(A..., dvectors, dx...) and the random g they belong to."""
    vectors, x = vectors.clone().requires_grad_(), [block.clone().requires_grad_() for block in x]
    padded = [torch.cat([block, block.new_zeros(5, *block.shape[1:])]) for block in x]  # at least as many rows as atoms
    out = reference(paths, padded, vectors.norm(dim=1), spherical_harmonics(paths.lmax, vectors), table, graph)
    out = [block[:5] for block in out]
    g = [torch.randn_like(block) for block in out]
    gradients = torch.autograd.grad(out, [vectors, *x], g)
    return [block.detach() for block in out], g, gradients[0], gradients[1:]


def assert_equal(ours, target, tolerance):
    """Up to a part `tolerance` of the largest entry: sums in another order."""
    for a, b in zip(ours, target, strict=True):
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


CASES = {name: CASES[name] for name in ("first layer", "different multiplicities", "odd parity")} | {
    "no directions": ("19x0e", 0, "1x0e"),
    "inputs to l = 2": ("16x0e+18x1o+3x2e", 2, "1x0e+1x1o+1x2e"),
    "to l = 8": ("2x0e", 8, "1x0e+1x4e+1x7o+1x8e"),
}


@pytest.mark.parametrize("case, tables", [*((case, False) for case in CASES), ("different multiplicities", True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_equals_autograd_through_harmonics_and_reference(case, tables, dtype):
    paths, graph, vectors, x, table = setup(*CASES[case], tables=tables)
    out, g, dvectors, dx = expected(paths, graph, vectors, x, table)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5  # sums of hundreds of terms: some 500 and 100 roundings
    table = table._replace(values=table.values.to(dtype))
    columns = list(vectors.T.to(dtype).contiguous())
    inputs = [*columns, table.values, *(block.to(dtype) for block in x)]
    found = [torch.full_like(block, float("nan"), dtype=dtype) for block in out]
    for centres in ((0, 2), (2, 5)):  # a thread's ranges, or a program's blocks
        run(paths, Variant(False, tables=tables, vectors=True), graph, [*inputs, *found], table, centres)
    assert_equal(found, out, tolerance)

    variant = Variant(True, tables=tables, vectors=True)
    slopes = [torch.full_like(column, float("nan")) for column in columns]
    added = [torch.ones_like(block, dtype=dtype) for block in x]
    arguments = [*inputs, *(block.to(dtype) for block in g)]
    for centres in ((0, 2), (2, 5)):
        run(paths, variant, graph, [*arguments, *slopes, *added], table, centres)
    assert_equal([torch.stack(slopes, dim=1)], [dvectors], tolerance)
    assert_equal(added, [block + 1 for block in dx], tolerance)

    again = [torch.full_like(column, 2.0) for column in columns]
    variant = variant._replace(x_gradient=False, add_vectors=True)
    run(paths, variant, graph, [*arguments, *again], table, (0, 5))
    assert_equal([torch.stack(again, dim=1)], [dvectors + 2], tolerance)


def test_gradient_of_an_edge_of_length_zero_is_zero():
    paths, graph, vectors, x, table = setup(*CASES["first layer"])
    _, g, dvectors, _ = expected(paths, graph, vectors, x, table)
    slopes = list(torch.ones_like(vectors).T.contiguous())
    variant = Variant(True, x_gradient=False, vectors=True)
    run(paths, variant, graph, [*vectors.T.contiguous(), table.values, *x, *g, *slopes], table, (0, 5))
    assert not dvectors[3].any() and not any(slope[3] for slope in slopes)


def test_edges_of_other_centres_are_left_alone():
    paths, graph, vectors, x, table = setup(*CASES["first layer"])
    _, g, dvectors, _ = expected(paths, graph, vectors, x, table)
    slopes = list(torch.full_like(vectors, 7.0).T.contiguous())
    variant = Variant(True, x_gradient=False, vectors=True)
    run(paths, variant, graph, [*vectors.T.contiguous(), table.values, *x, *g, *slopes], table, (1, 3))
    first, last = graph.row_ptr[1], graph.row_ptr[3]
    slopes = torch.stack(slopes, dim=1)
    assert (slopes[:first] == 7).all() and (slopes[last:] == 7).all() and not (slopes[first:last] == 7).any()
    assert_equal([slopes[first:last]], [dvectors[first:last]], 1e-13)


@pytest.mark.parametrize("flags", [{"dual": True, "vectors": True}, {"add_vectors": True}])
def test_flags_that_exclude_each_other_are_refused(flags):
    with pytest.raises(ValueError, match="vectors"):
        ConvKernel(ConvPaths(Irreps("4x0e"), 1, Irreps("1x0e")), Variant(True, **flags), 64, 8)
