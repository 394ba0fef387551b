"""The world model as Gymnasium environments, single and vector. Importing it loads no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kairos_env.env.env import WorldModelEnv as WorldModelEnv
    from kairos_env.env.vector_env import WorldModelVectorEnv as WorldModelVectorEnv

_HOME = {"WorldModelEnv": "env", "WorldModelVectorEnv": "vector_env"}

__all__ = ["WorldModelEnv", "WorldModelVectorEnv"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
