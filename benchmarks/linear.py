"""Prints the speed of the generated linear layers beside torch's matrix products, on one thread, all in L2.

    python benchmarks/linear.py
    python benchmarks/linear.py --atoms 32 --dtype float64

The rows are those of a block of atoms: dim components each. The columns: the kernel with one weight, with a weight per
species where all atoms are of one (sorted) or of two species in turn (mixed), and torch.mm with one weight. All are timed in
turn, several rounds; the median of the rounds is printed, in GFLOP/s of CPU time. Calls from Python cost 0.5 to 1 us each.
"""

import argparse
import statistics
import time

import torch

from ase_equinn.ops.jit import compile_function, vector_bytes
from ase_equinn.ops.linear_kernels import LinearKernel

SHAPES = [  # dim, n_in, n_out
    (1, 64, 64), (3, 64, 64), (5, 64, 64), (7, 64, 64), (1, 128, 128), (3, 128, 128), (1, 256, 64), (3, 192, 64),
    (5, 320, 64), (7, 320, 64), (1, 640, 64), (1, 640, 128), (3, 640, 128), (7, 640, 128), (1, 64, 640), (7, 100, 84),
    (1, 512, 128), (1, 64, 16), (1, 16, 64), (1, 64, 1), (1, 1, 64), (3, 1024, 128),
]  # fmt: skip


def kernel_call(shape: tuple[int, int, int], n_atoms: int, dtype: torch.dtype, species: torch.Tensor | None):
    """A function without arguments that runs the kernel once."""
    dim, n_in, n_out = shape
    bits = torch.finfo(dtype).bits
    lanes = vector_bytes() // (bits // 8)
    kernel = LinearKernel(dim, n_in, n_out, n_in, n_out, by_species=species is not None, bits=bits, lanes=lanes)
    function = compile_function("linear", kernel.source(), kernel.n_pointers, kernel.n_integers)
    x, y = torch.randn(n_atoms * dim, n_in, dtype=dtype), torch.empty(n_atoms * dim, n_out, dtype=dtype)
    tensors = [x, torch.randn(2, n_in, n_out, dtype=dtype), y] + ([] if species is None else [species])
    arguments = [tensor.data_ptr() for tensor in tensors] + [0, n_atoms]
    return lambda kept=tensors: function(*arguments)


def torch_call(shape: tuple[int, int, int], n_atoms: int, dtype: torch.dtype):
    dim, n_in, n_out = shape
    x, w = torch.randn(n_atoms * dim, n_in, dtype=dtype), torch.randn(n_in, n_out, dtype=dtype)
    y = torch.empty(n_atoms * dim, n_out, dtype=dtype)
    return lambda: torch.mm(x, w, out=y)


def seconds(call, n_calls: int) -> float:
    start = time.thread_time()
    for _ in range(n_calls):
        call()
    return (time.thread_time() - start) / n_calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, args.dtype)
    one, mixed = torch.zeros(args.atoms, dtype=torch.int64), torch.arange(args.atoms) % 2
    print(f"{'rows':>5} {'n_in':>5} {'n_out':>5} {'kernel':>8} {'sorted':>8} {'mixed':>8} {'torch':>8}   GFLOP/s")
    for shape in SHAPES:
        dim, n_in, n_out = shape
        calls = [kernel_call(shape, args.atoms, dtype, species) for species in (None, one, mixed)]
        calls.append(torch_call(shape, args.atoms, dtype))
        flops = 2 * args.atoms * dim * n_in * n_out
        n_calls = max(3, int(1e8 / flops) + 1)
        rounds = [[seconds(call, n_calls) for call in calls] for _ in range(args.rounds)]
        speeds = [flops / statistics.median(times) / 1e9 for times in zip(*rounds)]
        print(f"{args.atoms * dim:5} {n_in:5} {n_out:5} " + " ".join(f"{speed:8.1f}" for speed in speeds))


if __name__ == "__main__":
    main()
