"""Rows of the benchmarks of LIBERO, and their tables."""

from __future__ import annotations

from typing import Any

from kairos_env.eval.report.benchmark_table import BenchmarkTable, make_tables
from kairos_env.eval.report.published_results import PublishedBenchmark
from kairos_env.eval.rows import Job, Row

PLUS = PublishedBenchmark.read("libero-plus")


def row(
    name: str = "a",
    status: str = "success",
    suite: str = "libero_object",
    dimension: str = "camera",
    difficulty: int | None = 1,
    policy: str = "expert",
    state: int = 0,
    benchmark: str = "libero-plus",
    seconds: float = 10.0,
    message: str = "",
    **extra: Any,
) -> Row:
    task = {"dimension": dimension, "difficulty": difficulty, "base_task": "pick"}
    job = Job(policy, "Kairos-LIBERO-v0", f"{benchmark}/{suite}/{name}", state, 0)
    return Row(job, status, 50, 1.0, message, 5.0, seconds, task | extra)


def several(count: int, successes: int, start: str, **kwargs: Any) -> list[Row]:
    """Tasks ``start0``, ``start1``, ... of which the first succeed."""
    return [row(f"{start}{i}", "success" if i < successes else "failure", **kwargs) for i in range(count)]


def table(rows: list[Row]) -> BenchmarkTable:
    (only,) = make_tables(rows)
    return only
