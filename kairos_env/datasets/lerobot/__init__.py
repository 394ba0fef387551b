"""LeRobot's dataset format, v2.0 to v3: read without the library, and written."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kairos_env.datasets.lerobot.reader import LeRobotData as LeRobotData
    from kairos_env.datasets.lerobot.writer import LeRobotWriter as LeRobotWriter

_HOME = {"LeRobotData": "reader", "LeRobotWriter": "writer"}

__all__ = ["LeRobotData", "LeRobotWriter"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
