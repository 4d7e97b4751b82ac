"""Groups under a budget of edges; running out of memory costs a smaller group, not the work."""

import pytest
import torch

from ase_equinn.evaluate_memory import Budget, in_groups, is_out_of_memory


def work(edges, fits, error=MemoryError):
    """The groups that were computed, where more than `fits` edges at once fail."""
    attempts = []

    def compute(first, last):
        attempts.append((first, last))
        if sum(edges[first:last]) > fits:
            raise error
        return list(range(first, last))

    return compute, attempts


def test_groups_hold_as_much_as_the_budget_allows():
    edges = [3, 4, 0, 9, 1, 1, 50, 2]
    compute, attempts = work(edges, 100)
    found = list(in_groups(edges, Budget(10), compute))
    assert [(a, b) for a, b, _ in found] == attempts == [(0, 3), (3, 5), (5, 6), (6, 7), (7, 8)]
    assert [i for _, _, items in found for i in items] == list(range(8))
    assert list(in_groups([], Budget(1), compute)) == []
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Budget(0)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_group_that_does_not_fit_is_halved_and_so_are_later_ones(error, caplog):
    edges = [10] * 16
    compute, attempts = work(edges, 40, error)
    budget = Budget(160)
    found = list(in_groups(edges, budget, compute))
    assert [i for _, _, items in found for i in items] == list(range(16))
    assert attempts == [(0, 16), (0, 8), (0, 4), (4, 8), (8, 12), (12, 16)]
    assert budget.max_edges == 40
    assert "going on with at most 40" in caplog.text


def test_one_item_too_large_is_named():
    compute, _ = work([5, 100], 50)
    with pytest.raises(MemoryError, match="structure 1 with 100 edges does not fit"):
        list(in_groups([5, 100], Budget(1000), compute))


def test_other_errors_pass():
    compute, attempts = work([1, 1], 1, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_groups([1, 1], Budget(10), compute))
    assert len(attempts) == 1
    assert not is_out_of_memory(ValueError("x"))


def test_torchs_own_refusal_on_the_cpu_is_recognised():
    """Two million GiB: no machine's address space has them."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.float64)
    assert is_out_of_memory(caught.value)
