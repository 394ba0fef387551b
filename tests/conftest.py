"""What every test shares: one thread for each process, and GPU tests that run only where there is one."""

from __future__ import annotations

import os

# Before anything imports numpy or torch: two test processes with all cores each only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# No deadline: the machine may be busy. Derandomised: the suite gives the same answer twice.
settings.register_profile("kairos", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("kairos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
