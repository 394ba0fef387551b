"""The benchmarks' own files: what is read of them, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kairos_env.sims.libero.benchmark_files import BenchmarkFiles, read_definition, read_init_states


def test_a_folder_that_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="libero_suite_task_map.py"):
        BenchmarkFiles(tmp_path)
    (tmp_path / "a.bddl").write_text("(define (domain x))")
    with pytest.raises(ValueError, match="a.bddl is not a task definition"):
        read_definition(tmp_path / "a.bddl")


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/kairos-was-here",)


@pytest.mark.parametrize("what", [Evil(), {"a": 1}, np.array(["x"]), np.arange(3)], ids=["code", "dict", "text", "int"])
def test_initial_states_are_numbers_or_nothing(tmp_path: Path, what: object) -> None:
    torch.save(what, tmp_path / "x.pruned_init")
    with pytest.raises(ValueError, match="x.pruned_init holds"):
        read_init_states(tmp_path / "x.pruned_init")
    (tmp_path / "y.pruned_init").write_bytes(pickle.dumps(np.zeros(3), protocol=2))
    with pytest.raises(ValueError, match="y.pruned_init holds no initial states"):
        read_init_states(tmp_path / "y.pruned_init")
    assert not Path("/tmp/kairos-was-here").exists()


def test_initial_states_may_be_a_plain_archive(tmp_path: Path) -> None:
    states = np.arange(6.0).reshape(2, 3)
    np.savez(tmp_path / "x.pruned_init.npz", states=states)
    np.testing.assert_array_equal(read_init_states(tmp_path / "x.pruned_init"), states)
    np.savez(tmp_path / "y.pruned_init.npz", states=np.array([{}], object))
    with pytest.raises(ValueError, match="y.pruned_init holds no initial states"):
        read_init_states(tmp_path / "y.pruned_init")
    np.savez(tmp_path / "z.pruned_init.npz", other=states)
    with pytest.raises(ValueError, match="z.pruned_init holds no initial states"):
        read_init_states(tmp_path / "z.pruned_init")
