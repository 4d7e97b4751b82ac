"""Linear kernels against torch's matrix products in float64, bytes around the output included."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_equinn.ops import jit
from ase_equinn.ops.linear_kernels import LinearKernel, _groups

DTYPE = {32: torch.float32, 64: torch.float64}
MARK = -77.25  # what lies around the outputs


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Kernels of odd sizes stay out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASE_EQUINN_CACHE", str(tmp_path_factory.mktemp("cache") / "kernels"))
        yield


def lanes_of(bits):
    """Every vector width of this CPU, by lanes."""
    return [size // (bits // 8) for size in (16, 32, 64) if size <= jit.vector_bytes()]


def inputs(kernel, n_atoms, bits, n_species=3, order="random"):
    """x with numbers of no meaning between its rows, W, y, b, species: the pointers' tensors."""
    random = torch.Generator().manual_seed(7)
    rows, dtype = n_atoms * kernel.dim, DTYPE[bits]
    x = torch.full((rows, kernel.in_stride), float("nan"), dtype=dtype)
    x[:, : kernel.n_in] = torch.randn(rows, kernel.n_in, generator=random)
    w = torch.randn(n_species if kernel.by_species else 1, kernel.n_in, kernel.n_out, generator=random).to(dtype)
    y = torch.full((rows, kernel.out_stride), MARK, dtype=dtype)
    y[:, : kernel.n_out] = torch.randn(rows, kernel.n_out, generator=random)
    b = torch.randn(kernel.n_out, generator=random).to(dtype)
    species = torch.randint(n_species, (n_atoms,), generator=random)
    if order == "sorted":
        species = species.sort().values
    return x, w, y, b, species


@functools.cache
def compiled(kernel):
    return jit.compile_function("linear", kernel.source(), kernel.n_pointers, kernel.n_integers)


def run(kernel, tensors, first, last):
    """y after the kernel."""
    x, w, y, b, species = tensors
    y = y.clone()
    pointers = [x, w, y, *([b] if kernel.b is not None else []), *([species] if kernel.by_species else [])]
    compiled(kernel)(*(tensor.data_ptr() for tensor in pointers), first, last)
    return y


def expected(kernel, tensors, first, last):
    """The same from float64 matrix products, one atom at a time."""
    x, w, y, b, species = (t.double() if t.is_floating_point() else t for t in tensors)
    y = y.clone()
    for i in range(first, last):
        rows = slice(i * kernel.dim, (i + 1) * kernel.dim)
        product = x[rows, : kernel.n_in] @ w[species[i] if kernel.by_species else 0]
        if kernel.b is not None:
            product += b
        if kernel.accumulate:
            product += y[rows, : kernel.n_out]
        y[rows, : kernel.n_out] = product
    return y


def check(kernel, bits, n_atoms=7, first=0, last=None, order="random"):
    last = n_atoms if last is None else last
    tensors = inputs(kernel, n_atoms, bits, order=order)
    y, target = run(kernel, tensors, first, last), expected(kernel, tensors, first, last)
    # n_in products and sums of numbers of order 1 to 4, each rounded: 8 n_in epsilon is far above, a missing term far more
    error = 8 * (kernel.n_in + 2) * torch.finfo(DTYPE[bits]).eps
    torch.testing.assert_close(y.double(), target, rtol=0, atol=error)
    untouched = torch.ones_like(y, dtype=torch.bool)
    untouched[first * kernel.dim : last * kernel.dim, : kernel.n_out] = False
    assert torch.equal(y[untouched], tensors[2][untouched])


@pytest.mark.parametrize("by_species", [False, True])
@pytest.mark.parametrize(("bits", "lanes"), [(bits, lanes) for bits in (32, 64) for lanes in lanes_of(bits)])
def test_is_a_matrix_product(bits, lanes, by_species):
    """Whole vectors, a column that is left, an outer product, a dot product; components that fit a tile or do not."""
    for dim in (1, 5, 15):
        for n_in, n_out, accumulate, bias in ((64, 64, 0, 0), (5, 37, 1, 0), (1, 19, 0, 1), (33, 1, 1, 1)):
            strides = n_in + 3, n_out + 2
            check(LinearKernel(dim, n_in, n_out, *strides, by_species, accumulate, bias, bits=bits, lanes=lanes), bits)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(data=st.data())
def test_any_sizes(data):
    bits = data.draw(st.sampled_from([32, 64]))
    dim, n_in, n_out = (data.draw(st.integers(1, most)) for most in (16, 40, 150))
    strides = n_in + data.draw(st.integers(0, 5)), n_out + data.draw(st.integers(0, 5))
    flags = [data.draw(st.booleans()) for _ in range(3)]
    n_atoms = data.draw(st.integers(0, 40))
    first = data.draw(st.integers(0, n_atoms))
    last = data.draw(st.integers(first, n_atoms))
    lanes = data.draw(st.sampled_from(lanes_of(bits)))
    kernel = LinearKernel(dim, n_in, n_out, *strides, *flags, bits=bits, lanes=lanes)
    check(kernel, bits, n_atoms, first, last, data.draw(st.sampled_from(["random", "sorted"])))


def test_any_number_of_columns():
    for n_out in range(1, 36):
        check(LinearKernel(9, 4, n_out, 4, n_out, accumulate=True, bias=True, bits=32, lanes=lanes_of(32)[-1]), 32)


def test_any_number_of_rows():
    kernel = LinearKernel(1, 6, 20, 6, 20, accumulate=True, bits=64, lanes=lanes_of(64)[-1])
    for n_atoms in range(30):
        check(kernel, 64, n_atoms)


def test_atoms_of_one_species_are_found_wherever_they_are():
    for dim in (1, 2, 15):
        kernel = LinearKernel(dim, 9, 17, 9, 17, by_species=True, bits=64, lanes=lanes_of(64)[-1])
        x, w, y, b, _ = inputs(kernel, 150, 64)
        for species in ([0] * 150, [0, 1] * 75, [0] * 64 + [2] * 86, [1] + [0] * 148 + [2], [2, 1, 0, 0, 1] * 30):
            tensors = x, w, y, b, torch.tensor(species)
            for first, last in ((0, 150), (0, 64), (63, 128), (7, 136), (149, 150), (4, 4)):
                target = expected(kernel, tensors, first, last)
                torch.testing.assert_close(run(kernel, tensors, first, last), target, rtol=0, atol=1e-13)


def test_an_atom_gets_the_same_numbers_wherever_it_is_and_whatever_is_beside_it():
    """Bit by bit: tiles differ in their sizes, not in the order of a sum."""
    for n_out, by_species in ((1, False), (5, True), (40, False), (64, True)):
        kernel = LinearKernel(3, 70, n_out, 70, n_out, by_species, bits=32, lanes=lanes_of(32)[-1])
        tensors = inputs(kernel, 23, 32)
        whole = run(kernel, tensors, 0, 23)
        for first, last in ((0, 1), (1, 8), (8, 23)):
            rows = slice(3 * first, 3 * last)
            assert torch.equal(run(kernel, tensors, first, last)[rows], whole[rows])


def test_a_nan_stays_in_its_row():
    kernel = LinearKernel(1, 8, 24, 8, 24, bits=32, lanes=lanes_of(32)[-1])
    tensors = inputs(kernel, 13, 32)
    clean = run(kernel, tensors, 0, 13)
    tensors[0][4, 2] = float("nan")
    y = run(kernel, tensors, 0, 13)
    assert y[4].isnan().all()
    others = torch.arange(13) != 4
    assert torch.equal(y[others], clean[others])


def test_groups_cover_all_vectors_and_a_shared_last_one_is_with_the_one_before():
    for n_vectors in range(1, 40):
        for most in range(2, 5):
            offsets = [16 * k for k in range(n_vectors)]
            offsets[-1] -= 5 if n_vectors > 1 else 0
            groups = [
                [start + place for place in places]
                for begin, end, step, places in _groups(offsets, 16, most)
                for start in range(begin, end, step)
            ]
            assert [offset for group in groups for offset in group] == offsets
            assert max(map(len, groups)) <= most
            assert n_vectors == 1 or len(groups[-1]) >= 2


@pytest.mark.parametrize("sizes", [(0, 1, 1, 1, 1), (1, 0, 1, 1, 1), (1, 1, 0, 1, 1), (1, 5, 1, 4, 1), (1, 1, 5, 1, 4)])
def test_sizes_that_cannot_be_are_named(sizes):
    with pytest.raises(ValueError, match=f"dim {sizes[0]}, n_in {sizes[1]}, n_out {sizes[2]}"):
        LinearKernel(*sizes, bits=32, lanes=4)
