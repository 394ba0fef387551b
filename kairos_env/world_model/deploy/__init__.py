"""Faster, smaller, on many devices: compilation, quantisation, parallelism."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "compiled":  # this was a module
        raise ImportError(f"{name} is kairos_env.world_model.deploy.compile.{name} now")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
