"""Config dataclasses as command-line options: defaults, types and help are written once, in the dataclass.

Two forms of the same idea. `add_options` / `read_options` give ``--image-size 64`` for the flat configs of
commands that people type. `compose` gives hydra's ``data.path=runs/record model.preset=tiny`` for the
nested configs of runs.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kairos_env.runs import did_you_mean

Config = TypeVar("Config")


def field_help(config: type) -> dict[str, str]:
    """Field name -> its text in the ``Args:`` section of the class docstring, in one line."""
    found: dict[str, str] = {}
    for owner in reversed([c for c in config.__mro__ if dataclasses.is_dataclass(c)]):
        _, _, section = inspect.cleandoc(owner.__doc__ or "").partition("Args:\n")
        # A section ends where the text returns to the margin.
        section = re.split(r"\n(?=\S)", section)[0]
        for entry in re.split(r"\n(?=    \S)", "\n" + section):
            names, colon, text = entry.strip().partition(":")
            text = " ".join(text.split()).replace("`", "")
            if colon:
                found |= dict.fromkeys((name.strip() for name in names.split(",")), text)
    return found


def add_options(
    parser: argparse.ArgumentParser,
    config: type,
    skip: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Adds one option for each field of a flat dataclass: ``image_size: int = 64`` becomes ``--image-size``.

    Tuples are given as ``a,b``, mappings to numbers as ``a=1,b=2`` (or ``a,b`` for equal weights), booleans
    as ``--flag`` or ``--no-flag``. ``aliases`` gives fields a second spelling: ``{"policies": "--policy"}``.
    """
    texts, hints = field_help(config), typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        default = _default(field)
        required = default is dataclasses.MISSING
        text = texts.get(field.name, "").rstrip(".").replace("%", "%%")
        shown = "required" if required else f"default: {_shown(default)}"
        flags = [_flag(field.name), *filter(None, [(aliases or {}).get(field.name)])]
        option: dict[str, Any] = {"dest": field.name, "required": required, "help": f"{text} ({shown})".strip()}
        if hints[field.name] is bool:
            parser.add_argument(*flags, action=argparse.BooleanOptionalAction, default=default, **option)
            continue
        kind = _parser_of(hints[field.name])
        option["metavar"] = field.name.split("_")[-1].upper()
        parser.add_argument(*flags, type=kind, default=None if required else default, **option)


def read_options(args: argparse.Namespace, config: type[Config]) -> Config:
    """The config that the parsed options describe; its own checks run, and their ValueErrors pass through."""
    names = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    return config(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def compose(config: type[Config], overrides: Sequence[str]) -> Config:
    """The config dataclass with hydra overrides applied: ``["steps=100", "data.path=runs/record"]``.

    Raises:
        ValueError: not of the form key=value, an unknown key (with the nearest known one), or a value of
            the wrong type.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = keys(config)
    for override in overrides:
        key, equals, _ = override.partition("=")
        key = key.lstrip("+~")
        if not equals:
            raise ValueError(f"{override!r} is not of the form key=value; keys are {_some(known)}")
        if key not in known and not _opens_a_mapping(config, key):
            raise ValueError(f"unknown key {key!r}; {did_you_mean(key, known)}")
    ConfigStore.instance().store(name="kairos_config", node=_schema(config))
    try:
        with initialize(config_path=None, version_base="1.3"):
            composed = hydra_compose(config_name="kairos_config", overrides=list(overrides))
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"{' '.join(overrides)}: {reason}") from None
    assert isinstance(values, dict)
    return _build(config, values)


def _schema(config: type) -> type:
    """The same dataclass in the types that hydra knows: it lacks Literal, and locks frozen classes."""
    hints, fields = typing.get_type_hints(config), []
    for field in dataclasses.fields(config):
        hint, default = hints[field.name], _default(field)
        if dataclasses.is_dataclass(hint):
            section = _schema(hint)  # type: ignore[arg-type]
            make = functools.partial(_fill, section, default)
            fields.append((field.name, section, dataclasses.field(default_factory=make)))
        elif default is dataclasses.MISSING:
            fields.append((field.name, _plain(hint), dataclasses.field(default="???")))
        else:
            make = functools.partial(copy.copy, default)
            fields.append((field.name, _plain(hint), dataclasses.field(default_factory=make)))
    return dataclasses.make_dataclass(config.__name__, fields)


def _fill(section: type, values: Any) -> Any:
    """An instance of a schema with the values of the real config, or with its own defaults."""
    if not dataclasses.is_dataclass(values):
        return section()
    nested = typing.get_type_hints(section)
    given = {
        f.name: _fill(nested[f.name], v) if dataclasses.is_dataclass(v) else v
        for f in dataclasses.fields(section)
        if (v := getattr(values, f.name)) is not dataclasses.MISSING
    }
    return section(**given)


def _plain(hint: Any) -> Any:
    """``Literal["a", "b"]`` as ``str``, also inside tuples and optionals."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return type(arguments[0])
    if not arguments:
        return hint
    inner = tuple(a if a is Ellipsis else _plain(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, inner)
    return origin[inner]


def _build(config: type[Config], values: Mapping[Any, Any], prefix: str = "") -> Config:
    """The real, nested, frozen config from plain values: lists become tuples again, choices are checked."""
    hints, built = typing.get_type_hints(config), {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            built[name] = _build(hint, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            built[name] = _restore(hint, value, prefix + name)
    return config(**built)


def _restore(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) and value is not None:
        inner = [a for a in arguments if a is not type(None)]
        return _restore(inner[0], value, key) if len(inner) == 1 else value
    if origin is typing.Literal and value not in arguments:
        raise ValueError(f"{key}={value}: {did_you_mean(str(value), [str(a) for a in arguments])}")
    if origin is tuple and value is not None:
        if arguments[-1] is Ellipsis:
            return tuple(_restore(arguments[0], v, key) for v in value)
        if len(value) != len(arguments):
            raise ValueError(f"{key}={list(value)} needs {len(arguments)} values")
        return tuple(_restore(a, v, key) for a, v in zip(arguments, value, strict=True))
    return value


def keys(config: type, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Every dotted key of a nested config -> (default, help); sections themselves are keys too."""
    found: dict[str, tuple[Any, str]] = {}
    texts, hints = field_help(config), typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        default, kind = _default(field), hints[field.name]
        found[prefix + field.name] = (default, texts.get(field.name, ""))
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            nested = keys(kind, f"{prefix}{field.name}.")
            # The parent's default may set the section's fields otherwise than their own defaults do.
            for key, (value, text) in nested.items():
                owner: Any = default
                for part in key.removeprefix(f"{prefix}{field.name}.").split("."):
                    owner = getattr(owner, part, value)
                found[key] = (owner, text)
    return found


def describe(config: type) -> str:
    """A table of keys, defaults and meanings for a help text; sections are left to their fields."""
    rows = [(key, _shown(value), text) for key, (value, text) in keys(config).items()]
    rows = [row for row in rows if not any(other.startswith(row[0] + ".") for other, _, _ in rows)]
    left = max(len(f"{key}={value}") for key, value, _ in rows)
    left = min(left, 48)
    return "\n".join(f"  {f'{key}={value}':<{left}}  {text}".rstrip() for key, value, text in rows)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "???"
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "none"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "none"
    return str(value) or "empty"


def _parser_of(hint: Any) -> Any:
    """A function text -> value for the field types that flat configs use."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [a for a in arguments if a is not type(None)]
        return _parser_of(inner)
    if origin is typing.Literal:
        return _choice(arguments)
    if origin in (tuple, list, Sequence):
        return _sequence(_parser_of(arguments[0]))
    if origin in (dict, Mapping):
        return _weights if arguments[1] is float else _values
    if hint in (str, int, float, Path):
        return hint
    raise TypeError(f"no command-line form for a field of type {hint}")


def _choice(legal: tuple[Any, ...]) -> Any:
    def choice(text: str) -> str:
        if text not in legal:
            raise argparse.ArgumentTypeError(f"{text!r}; {did_you_mean(text, legal)}")
        return text

    return choice


def _sequence(element: Any) -> Any:
    def sequence(text: str) -> tuple[Any, ...]:
        try:
            return tuple(element(part.strip()) for part in _parts(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}; expected values separated by commas") from None

    return sequence


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for part in _parts(text):
        name, _, weight = part.partition("=")
        try:
            weights[name] = float(weight) if weight else 1.0
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}; expected name=number, for example push=0.5") from None
    return weights


def _values(text: str) -> dict[str, Any]:
    """``a=1,b=text`` with numbers, booleans and Python literals as such."""
    values: dict[str, Any] = {}
    for part in _parts(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{part!r}; expected name=value")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def _parts(text: str) -> list[str]:
    """Splits at the commas that are outside of brackets: ``policy,cem(horizon=8,population=64)`` is two."""
    return [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text) if part.strip()]


def _opens_a_mapping(config: type, key: str) -> bool:
    """Whether ``key`` is an entry of a mapping field (``tasks.push``), whose names are free."""
    parent = key.rpartition(".")[0]
    value = keys(config).get(parent, (None, ""))[0]
    return isinstance(value, Mapping)


def _some(names: Sequence[str] | Mapping[str, Any], most: int = 24) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
