"""Compiled kernels: emitted arithmetic is right, and the cache on disk is neither trusted blindly nor needed."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
import torch
from test_conv import evaluate, setup

from ase_equinn.ops import conv_fused, jit
from ase_equinn.ops.emitter import Dual, Emitter


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("ASE_EQUINN_CACHE", str(folder))
    monkeypatch.setattr(conv_fused, "_kernels", {})
    return folder


def scale_kernel(factor=3.0):
    """y[k] = factor * x[k], in vectors and what remains of them."""
    e = Emitter("scale", 2, 1, 64, jit.vector_bytes() // 8)
    for k, width in e.vectors(e.integers[0]):
        e.store(e.mul(e.const(factor, width), e.load(e.pointers[0], k, width)), e.pointers[1], k)
    return e.finish()


def run_scale(n=13):
    function = jit.compile_function("scale", scale_kernel(), 2, 1)
    x, y = np.arange(n, dtype=float), np.full(n + 1, -1.0)
    function(x.ctypes.data, y.ctypes.data, n)
    assert y[-1] == -1.0
    return y[:-1]


def test_vectors_cover_every_element_and_no_more(cache):
    np.testing.assert_array_equal(run_scale(), 3.0 * np.arange(13))


def test_pieces_cover_any_number_of_channels():
    for lanes in (4, 8, 16):
        e = Emitter("f", 0, 0, 32, lanes)
        for n in range(1, 70):
            covered = [c for start, stop, width in e.pieces(n) for k in range(start, stop, width) for c in range(k, k + width)]
            assert covered == list(range(n))


def test_dual_product_rule():
    e = Emitter("rule", 2, 0, 64, 1)
    x = [e.load(e.pointers[0], k) for k in range(4)]
    product = e.dual_fma(Dual(x[0], x[1]), Dual(x[2], x[3]))
    e.store(product.value, e.pointers[1], 0)
    e.store(product.tangent, e.pointers[1], 1)
    function = jit.compile_function("rule", e.finish(), 2, 0)
    x, y = np.array([2.0, 5.0, 3.0, 7.0]), np.zeros(2)
    function(x.ctypes.data, y.ctypes.data)
    np.testing.assert_array_equal(y, [6.0, 2 * 7 + 5 * 3])


def test_cache_is_private_and_used(cache, monkeypatch):
    run_scale()
    (entry,) = cache.iterdir()
    assert cache.stat().st_mode & 0o077 == 0 and entry.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(jit, "_object_code", lambda *arguments: pytest.fail("compiled again"))
    np.testing.assert_array_equal(run_scale(), 3.0 * np.arange(13))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "foreign"])
def test_a_damaged_entry_is_rebuilt(cache, damage):
    run_scale()
    (entry,) = cache.iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    entry.write_bytes({"truncated": content[:100], "empty": b"", "foreign": b"not an object file" * 9}.get(damage, content))
    np.testing.assert_array_equal(run_scale(), 3.0 * np.arange(13))
    assert entry.read_bytes()[:4] != b"not " and len(entry.read_bytes()) > 500


@pytest.mark.parametrize("target", ["folder", "file"])
def test_what_others_could_have_written_is_not_read(cache, monkeypatch, target):
    run_scale()
    (entry,) = cache.iterdir()
    os.chmod(cache if target == "folder" else entry, 0o777)
    compiled = []
    original = jit._object_code
    monkeypatch.setattr(jit, "_object_code", lambda *arguments: compiled.append(1) or original(*arguments))
    np.testing.assert_array_equal(run_scale(), 3.0 * np.arange(13))
    assert compiled == [1]


def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("ASE_EQUINN_CACHE", str(blocked / "kernels"))
    np.testing.assert_array_equal(run_scale(), 3.0 * np.arange(13))


def _in_child(queue):
    paths, x, vectors, table, graph = setup("odd parity", n_atoms=7, n_edges=260)
    conv_fused._MIN_EDGES = 50
    queue.put([block.numpy() for block in evaluate(paths, x, vectors, table, graph, "auto")])


def test_after_a_fork(cache, monkeypatch):
    """The pool of threads does not survive a fork; the child makes its own."""
    monkeypatch.setattr(conv_fused, "_MIN_EDGES", 50)
    paths, x, vectors, table, graph = setup("odd parity", n_atoms=7, n_edges=260)
    expected = evaluate(paths, x, vectors, table, graph, "auto")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    found = queue.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_two_python_threads_at_once(cache, monkeypatch):
    monkeypatch.setattr(conv_fused, "_MIN_EDGES", 50)
    jobs = [setup("different multiplicities", seed, 7, 260) for seed in range(2)]
    expected = [evaluate(*job, "auto") for job in jobs]
    wrong = []

    def work(k):
        for _ in range(50):
            result = evaluate(*jobs[k], "auto")
            if not all(torch.equal(a, b) for a, b in zip(result, expected[k])):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
