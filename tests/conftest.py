"""GPU tests are skipped, with the reason, where there is no CUDA device."""

import os

import pytest

# As the command `equinn` does, before torch is imported: on a busy machine spinning threads make the tests ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

pytest.register_assert_rewrite("contract", "contract_structures", "contract_symmetries")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
