"""The driver goes through the steps of a program: threads over ranges of atoms, blocks of atoms in turn, all steps of a stage.

For every block a step's arguments are base + thread * per_thread - first * per_row, where the last two are zero for what all
threads and blocks share: so kernels see one address rule for all buffers (row i stands at i times the size of a row).
Between stages the threads wait for each other.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import lru_cache
from typing import NamedTuple, Sequence

import numpy as np

from .conv_fused import thread_pool
from .jit import compile_function

_SPINS = 4096  # looks at the counter before a waiting thread offers its core to others
_locks: dict[int, threading.Lock] = {}

_SOURCE = f"""
define void @drive(ptr %steps, ptr %stages, ptr %base, ptr %per_thread, ptr %per_row, ptr %resolved, ptr %counter,
                   ptr %give_way, ptr %bounds, i64 %n_stages, i64 %thread, i64 %n_threads, i64 %block) {{
entry:
  br label %stage
stage:
  %s = phi i64 [ 0, %entry ], [ %s1, %stage_end ]
  %more = icmp slt i64 %s, %n_stages
  br i1 %more, label %stage_begin, label %done
stage_begin:
  %sp = getelementptr i64, ptr %stages, i64 %s
  %step_first = load i64, ptr %sp
  %sp1 = getelementptr i64, ptr %sp, i64 1
  %step_last = load i64, ptr %sp1
  %s2 = mul i64 %s, 2
  %fp = getelementptr i64, ptr %bounds, i64 %s2
  %first = load i64, ptr %fp
  %lp = getelementptr i64, ptr %fp, i64 1
  %last = load i64, ptr %lp
  br label %block_head
block_head:
  %b = phi i64 [ %first, %stage_begin ], [ %b1, %block_end ]
  %inside = icmp slt i64 %b, %last
  br i1 %inside, label %block_begin, label %meet
block_begin:
  %b1 = add i64 %b, %block
  %over = icmp sgt i64 %b1, %last
  %stop = select i1 %over, i64 %last, i64 %b1
  br label %step_head
step_head:
  %k = phi i64 [ %step_first, %block_begin ], [ %k1, %call ]
  %left = icmp slt i64 %k, %step_last
  br i1 %left, label %step_begin, label %block_end
step_begin:
  %k3 = mul i64 %k, 3
  %kp = getelementptr i64, ptr %steps, i64 %k3
  %function = load ptr, ptr %kp
  %ap = getelementptr i64, ptr %kp, i64 1
  %arg = load i64, ptr %ap
  %cp = getelementptr i64, ptr %kp, i64 2
  %count = load i64, ptr %cp
  br label %arg_head
arg_head:
  %a = phi i64 [ 0, %step_begin ], [ %a1, %arg_body ]
  %some = icmp slt i64 %a, %count
  br i1 %some, label %arg_body, label %call
arg_body:
  %from = add i64 %arg, %a
  %p0 = getelementptr i64, ptr %base, i64 %from
  %x0 = load i64, ptr %p0
  %p1 = getelementptr i64, ptr %per_thread, i64 %from
  %x1 = load i64, ptr %p1
  %p2 = getelementptr i64, ptr %per_row, i64 %from
  %x2 = load i64, ptr %p2
  %y1 = mul i64 %x1, %thread
  %y2 = mul i64 %x2, %b
  %z = add i64 %x0, %y1
  %value = sub i64 %z, %y2
  %to = getelementptr i64, ptr %resolved, i64 %a
  store i64 %value, ptr %to
  %a1 = add i64 %a, 1
  br label %arg_head
call:
  call void %function(ptr %resolved, i64 %b, i64 %stop)
  %k1 = add i64 %k, 1
  br label %step_head
block_end:
  br label %block_head
meet:
  %s1 = add i64 %s, 1
  %alone = icmp eq i64 %n_threads, 1
  br i1 %alone, label %stage_end, label %arrive
arrive:
  %before = atomicrmw add ptr %counter, i64 1 seq_cst
  %target = mul i64 %s1, %n_threads
  br label %wait
wait:
  %spins = phi i64 [ 0, %arrive ], [ %spins1, %again ], [ 0, %yield ]
  %seen = load atomic i64, ptr %counter seq_cst, align 8
  %all = icmp sge i64 %seen, %target
  br i1 %all, label %stage_end, label %look
look:
  %spins1 = add i64 %spins, 1
  %long = icmp sgt i64 %spins1, {_SPINS}
  br i1 %long, label %yield, label %again
again:
  br label %wait
yield:
  %ignored = call i32 %give_way()
  br label %wait
stage_end:
  br label %stage
done:
  ret void
}}
"""


class Steps(NamedTuple):
    """What the driver reads; int64 arrays.

    steps: (n_steps, 3): address of the kernel's packed function, first argument, number of arguments.
    stages: (n_stages + 1,): first step of each, and the end.
    base, per_thread, per_row: of every argument.
    """

    steps: np.ndarray
    stages: np.ndarray
    base: np.ndarray
    per_thread: np.ndarray
    per_row: np.ndarray


@lru_cache(maxsize=None)
def _drive():
    return compile_function("drive", _SOURCE, 9, 4)


@lru_cache(maxsize=None)
def _give_way() -> int:
    """The address of the system's function by which a thread offers its core to another."""
    library = ctypes.windll.kernel32.SwitchToThread if sys.platform == "win32" else ctypes.CDLL(None).sched_yield
    return ctypes.cast(library, ctypes.c_void_p).value


def drive(steps: Steps, ranges: Sequence, block: int) -> None:
    """Runs all stages, one thread for each range of atoms; several threads only once per process at a time.

    Args:
        steps: see there.
        ranges: first and last atom of each thread, for all stages alike or for every stage.
        block: atoms that are handled together.
    """
    n_stages, ranges = len(steps.stages) - 1, np.asarray(ranges, dtype=np.int64)
    n_threads = ranges.shape[-2]
    bounds = np.repeat(ranges[:, None], n_stages, 1) if ranges.ndim == 2 else ranges.swapaxes(0, 1).copy()
    counter = np.zeros(8, dtype=np.int64)
    longest = int(steps.steps[:, 2].max(initial=0))
    resolved = np.empty((n_threads, longest + 8), dtype=np.int64)
    arrays = [array.ctypes.data for array in steps]

    def work(thread: int) -> None:
        pointers = *arrays, resolved[thread].ctypes.data, counter.ctypes.data, _give_way(), bounds[thread].ctypes.data
        _drive()(*pointers, n_stages, thread, n_threads, block)

    if n_threads == 1:
        work(0)
        return
    with _locks.setdefault(os.getpid(), threading.Lock()):  # else two programs could wait for one another's threads
        waiting = [thread_pool(n_threads).submit(work, thread) for thread in range(1, n_threads)]
        work(0)
        for future in waiting:
            future.result()
