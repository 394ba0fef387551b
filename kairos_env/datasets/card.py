"""What the cards of datasets and of models have in common: README.md files with the header that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kairos_env.records import RobotSpec


def hub_header(values: Mapping[str, str | Sequence[str]]) -> list[str]:
    """The lines of the YAML header: texts, and lists of texts."""
    lines = ["---"]
    for key, value in values.items():
        lines += [f"{key}: {value}"] if isinstance(value, str) else [f"{key}:", *(f"- {entry}" for entry in value)]
    return [*lines, "---", ""]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table, as lines."""
    rows = [header, ["---"] * len(header), *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def field_table(spec: RobotSpec) -> list[str]:
    """Fields of state and action with units and ranges, and the cameras, as lines."""
    parts = (("state", spec.proprio), ("action", spec.action))
    lines = [[part, f.name, f.unit, f"{f.low:g} to {f.high:g}"] for part, fields in parts for f in fields]
    cameras = ", ".join(f"{c.name} ({c.height} x {c.width})" for c in spec.cameras)
    return [*table(["", "field", "unit", "range"], lines), "", f"Cameras: {cameras or 'none'}."]
