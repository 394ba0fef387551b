"""Plain values of a file, such as YAML or JSON gives them, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

from kairos_env.runs import did_you_mean

T = TypeVar("T")


def build(kind: type[T], values: Any, where: str, base: T | None = None) -> T:
    """A dataclass with the fields that a mapping gives.

    Args:
        where: what messages call the place.
        base: has the values of all other fields; None: their defaults.

    Raises:
        ValueError: an unknown name, a value of another type, one that the dataclass refuses, or one that is missing.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; expected a mapping of names to values")
    hints, found = typing.get_type_hints(kind), {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{where} has no {name!r}; {did_you_mean(str(name), hints)}")
        found[name] = _value(hints[name], value, f"{where}.{name}", getattr(base, name, None))
    fields = dataclasses.fields(cast(Any, kind))
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING and f.name not in found]
    if base is None and needed:
        raise ValueError(f"{where} lacks {', '.join(needed)}")
    try:
        return kind(**found) if base is None else cast(T, dataclasses.replace(cast(Any, base), **found))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str, base: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [a for a in arguments if a is not types.NoneType]
        return None if value is None else _value(kinds[0], value, where, base)
    if dataclasses.is_dataclass(hint):
        return build(cast(Any, hint), value, where, base)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}; expected a list")
        return tuple(_value(arguments[0], each, f"{where}[{i}]", None) for i, each in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}; {did_you_mean(str(value), map(str, arguments))}")
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}; expected {'a number' if hint in (int, float) else hint.__name__}")
    return value
