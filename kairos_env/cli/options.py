"""A command's options: the parameters of its function, and the fields of the config dataclass that it takes.

Every command spells them alike: ``--section.key value``, lists as ``a,b``, mappings as ``a=1,b=2``, ``--flag`` and
``--no-flag``, ``None`` for nothing. Types and defaults are those of the code, help texts those of its ``Args:``.
``section.key=value`` with ``[a,b]`` and ``null``, the older spelling of `kairos train`, means the same.

tyro makes the parser and the help. What a person can get wrong is checked before, so that each mistake is one line.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from kairos_env.cli.values import convert, metavar, read_file, shown
from kairos_env.runs import did_you_mean

T = TypeVar("T")
Fields = Annotated[T, tyro.conf.arg(name="")]  # a config dataclass whose fields are options of the command itself
Positional = Annotated[T, tyro.conf.Positional]  # a value without a flag
Command = Callable[..., int]

REQUIRED = dataclasses.MISSING
# Field name -> its names on the command line; the first one is shown.
NAMES = {
    "policies": ("policy", "policies"),
    "output": ("out", "output"),
    "source": ("from", "source"),
    "feature_map": ("map", "feature-map"),
    "tasks": ("tasks", "task"),
    "episodes": ("episodes", "trials"),
    "first_initial_state": ("first-initial-state", "first-state", "first-initial-state-id"),
}


class OptionError(Exception):
    """Words that are no legal options of a command; the message is for the person who typed them."""


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Args:
        names: with the section that it is in, such as ``loop.steps``; the first one is shown.
        hint: type of the value.
        default: `REQUIRED` if there is none.
        help: one line of text.
        positional: given by its place, without a flag.
    """

    names: tuple[str, ...]
    hint: Any
    default: Any
    help: str
    positional: bool = False

    @property
    def flag(self) -> str:
        """What it is called in messages: ``--loop.steps``, or ``RUNS`` of a positional argument."""
        return self.names[0].upper() if self.positional else f"--{self.names[0]}"

    @property
    def flags(self) -> dict[str, str | None]:
        """Every flag that is understood -> the value that it stands for; None if the value follows."""
        if self.positional:
            return {}
        if self.hint is not bool:
            return {f"--{name}": None for name in self.names}
        section, dot, name = self.names[0].rpartition(".")
        return {self.flag: "true", f"--{section}{dot}no-{name}": "false"}


def bind(command: Command, words: Sequence[str], name: str, about: str = "") -> Callable[[], int]:
    """The command with the values that the words give it, ready to be called.

    Args:
        command: its parameters are the options; one annotated `Fields` lends the fields of its dataclass.
        words: of the command line, behind the command's name.
        name: such as ``kairos eval table``, for the help.
        about: the help's first paragraphs.

    Raises:
        OptionError: an unknown option (with the nearest known one), a value that is not legal, or one that is missing.
        SystemExit: the help was asked for and has been printed.
    """

    @functools.wraps(command)
    def bound(*args: Any, **kwargs: Any) -> functools.partial[int]:
        return functools.partial(command, *args, **kwargs)

    known = options(command)
    takes_file = any(map(_is_config, typing.get_type_hints(command, include_extras=True).values()))
    if takes_file:
        about += "\n\n--config FILE reads options from YAML, or from JSON such as the config.json of training."
    help_wanted = not {"-h", "--help"}.isdisjoint(words)
    # a module of commands may say how options of earlier versions are spelled now
    renamed = getattr(inspect.getmodule(command), "RENAMED", {})
    checked = ["--help"] if help_wanted else _checked(list(words), known, renamed, takes_file)
    return tyro.cli(bound, prog=name, description=about, args=checked, registry=_registry())


def options(command: Command) -> list[Option]:
    """All options of a command, those of nested sections included, in the order of the code."""
    hints, texts = typing.get_type_hints(command, include_extras=True), _help_texts(command)
    found: list[Option] = []
    for name, parameter in inspect.signature(command).parameters.items():
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        found += _options(name, hints[name], default, texts.get(name, ""), "")
    return found


def _options(name: str, hint: Any, default: Any, text: str, prefix: str) -> Iterator[Option]:
    """The option of a parameter or field; those of its fields, if it is a config dataclass."""
    marked = typing.get_origin(hint) is Annotated  # as `Fields` or `Positional`
    plain = typing.get_args(hint)[0] if marked else hint
    if dataclasses.is_dataclass(plain):
        inside = prefix if marked else f"{prefix}{_dashed(name)}."
        for field in _fields(plain, default):  # type: ignore[arg-type]
            yield from _options(*field, inside)
    else:
        names = tuple(prefix + each for each in NAMES.get(name, (_dashed(name),)))
        yield Option(names, plain, default, text, positional=marked)


def _fields(config: type, default: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and help text of every field."""
    hints, texts = typing.get_type_hints(config, include_extras=True), _help_texts(config)
    for field in filter(lambda field: field.init, dataclasses.fields(config)):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if isinstance(default, config):
            value = getattr(default, field.name)
        yield field.name, hints[field.name], value, texts.get(field.name, "")


def _help_texts(owner: Any) -> dict[str, str]:
    """Name -> its text in the ``Args:`` section of a docstring, in one line; of a class, inherited ones too."""
    found: dict[str, str] = {}
    for each in reversed(inspect.getmro(owner)) if isinstance(owner, type) else [owner]:
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Args:\n")
        section = re.split(r"\n(?=\S)", section)[0]  # it ends where the text returns to the margin
        for entry in re.split(r"\n(?=    \S)", "\n" + section):
            names, colon, text = entry.strip().partition(":")
            text = " ".join(text.split()).replace("`", "").rstrip(".")
            if colon:
                found |= dict.fromkeys((name.strip() for name in names.split(",")), text)
    return found


def _is_config(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated and dataclasses.is_dataclass(typing.get_args(hint)[0])


def _checked(rest: list[str], known: Sequence[Option], renamed: Mapping[str, str], takes_file: bool) -> list[str]:
    """The words in tyro's spelling, once all of them are known, legal and complete."""
    flags = {flag: (option, stands_for) for option in known for flag, stands_for in option.flags.items()}
    places = [option for option in known if option.positional]
    given: dict[str, str] = {}
    bare: list[str] = []
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        flag = "--" + _dashed(key.lstrip("-+"))
        if not word.startswith("-") and places and flag not in flags:
            bare.append(word)
            continue
        if flag == "--config" and takes_file:
            rest = _from_file(value if equals else rest.pop(0) if rest else "", flags) + rest
            continue
        if not (word.startswith("--") or equals) or flag not in flags:
            hint = f"it is spelled {renamed[flag]} now" if flag in renamed else did_you_mean(flag, flags)
            raise OptionError(f"unknown option {key}; {hint}")
        option, stands_for = flags[flag]
        if equals and stands_for == "false":
            raise OptionError(f"{key} takes no value")
        if not equals and stands_for is None and (not rest or rest[0].startswith("--")):
            raise OptionError(f"{key} needs a value: {option.help}")
        if not equals:
            value = rest.pop(0) if stands_for is None else stands_for
        given[option.flag] = _tyros(option, key, value)
    _require_complete(places, bare, [o for o in known if not o.positional and o.flag not in given])
    for option, word in zip(places, bare, strict=False):
        _read(option, option.flag, word)
    return [*bare, *given.values()]


def _tyros(option: Option, key: str, value: str) -> str:
    """The option in the spelling that tyro is given, once its value is known to be legal."""
    read = _read(option, key, value)
    if option.hint is bool:
        return next(flag for flag, stands_for in option.flags.items() if stands_for == str(read).lower())
    return f"{option.flag}={value}"


def _read(option: Option, key: str, value: str) -> Any:
    try:
        return convert(option.hint, value)
    except ValueError as error:
        raise OptionError(f"{key}: {error}") from None


def _from_file(path: str, flags: Container[str]) -> list[str]:
    """The options that a file gives, as words. A mapping is a section, or the value of one option."""

    def words(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in values.items():
            flag = prefix + _dashed(str(key))
            if isinstance(value, Mapping) and flag not in flags:
                yield from words(value, f"{flag}.")
            else:
                yield f"{flag}={shown(value)}"

    try:
        return list(words(read_file(Path(path).expanduser()), "--"))
    except (ValueError, OSError) as error:
        raise OptionError(f"--config: {error}") from None


def _require_complete(places: Sequence[Option], bare: Sequence[str], left_out: Sequence[Option]) -> None:
    if len(bare) > len(places) and not any(typing.get_origin(option.hint) is tuple for option in places):
        raise OptionError(f"unexpected {bare[len(places)]!r}; options are given as --key value")
    missing = [o for o in (*places[len(bare) :], *left_out) if o.default is REQUIRED]
    if missing:
        needed = "; ".join(f"{o.flag} ({o.help})" for o in missing)
        raise OptionError(f"missing: {needed}")


def _registry() -> ConstructorRegistry:
    """tyro's rules, behind one for values and one for config dataclasses."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def value_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if tyro.conf.Positional in info.markers and info.type_origin is tuple:
            return None  # a word for each
        if info.type_origin is None and info.type not in (str, int, float, Path):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar(info.type),
            instance_from_str=lambda given: convert(info.type, given[0]),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [shown(value)],
        )

    @registry.struct_rule
    def config_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        config = info.type
        if not dataclasses.is_dataclass(config) or config.__module__.startswith("tyro."):
            return None

        def build(**values: Any) -> Any:
            try:
                return config(**values)
            except ValueError as error:  # the config's own checks
                raise OptionError(str(error)) from None

        fields = []
        for name, hint, default, text in _fields(config, info.default):
            if name in NAMES:
                hint = Annotated[hint, tyro.conf.arg(name=NAMES[name][0])]
            fields.append(StructFieldSpec(name, hint, tyro.MISSING if default is REQUIRED else default, text))
        return StructConstructorSpec(build, tuple(fields))

    return registry


def _dashed(name: str) -> str:
    return name.replace("_", "-")
