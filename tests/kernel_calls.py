"""Calls of generated kernels with tensors, and the layouts that their tests go through."""

import torch

from ase_equinn.ops.jit import compile_function

# (bits, numbers in a vector): what CPUs have, and vectors that LLVM must split
LAYOUTS = [(bits, lanes) for bits in (32, 64) for lanes in (4, 8, 16)]
# of the largest entry: some tens of roundings
TOLERANCE = {32: 3e-6, 64: 5e-15}


def dtype_of(bits: int) -> torch.dtype:
    return torch.float32 if bits == 32 else torch.float64


def call(kernel, tensors, *integers) -> None:
    """Runs the kernel on the tensors' memory."""
    function = compile_function(kernel.e.name, kernel.source(), kernel.n_pointers, kernel.n_integers)
    for tensor in tensors:
        assert tensor.is_contiguous()
    function(*(tensor.data_ptr() for tensor in tensors), *integers)
