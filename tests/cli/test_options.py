"""One dataclass is the schema of its command line, in both forms."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from kairos_env.cli.options import add_options, compose, describe, field_help, keys, read_options


@dataclass(frozen=True)
class Flat:
    """A flat config.

    Args:
        out: where results go; 100 %
            sure.
        low, high: the range.
        kind: what it is.

    Raises:
        ValueError: low > high.
    """

    out: str
    low: int = 0
    high: float = 1.5
    kind: Literal["soft", "hard"] = "soft"
    names: tuple[str, ...] = ("a",)
    weights: dict[str, float] = field(default_factory=lambda: {"a": 0.5})
    extra: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None
    fast: bool = False

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} > high {self.high}")


@dataclass(frozen=True)
class Data:
    """Where from.

    Args:
        path: folder of the recording.
    """

    path: str = "runs/record"
    mixture: dict[str, float] = field(default_factory=lambda: {"push": 1.0})


@dataclass(frozen=True)
class Nested:
    """A nested config."""

    preset: Literal["debug", "tiny"] = "tiny"
    steps: int = 10
    betas: tuple[float, float] = (0.9, 0.95)
    pattern: tuple[str, ...] = ("swa", "gdn")
    limit: int | None = None
    data: Data = field(default_factory=lambda: Data(path="elsewhere"))


def parse(*words: str) -> Flat:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Flat)
    return read_options(parser.parse_args(list(words)), Flat)


def test_help_comes_from_the_docstring() -> None:
    assert field_help(Flat) == {
        "out": "where results go; 100 % sure.",
        "low": "the range.",
        "high": "the range.",
        "kind": "what it is.",
    }
    parser = argparse.ArgumentParser()
    add_options(parser, Flat, skip=("fast",))
    text = " ".join(parser.format_help().split())
    assert "where results go; 100 % sure (required)" in text and "(default: a=0.5)" in text and "--fast" not in text


def test_defaults_and_every_type() -> None:
    assert parse("--out", "x") == Flat("x")
    words = "--out x --low -3 --high 2 --kind hard --names a,cem(n=1,m=2) --weights b,c=2 --limit 0.1 --fast"
    got = parse(*words.split(), "--extra", "n=3,flag=True,word=red")
    extra = {"n": 3, "flag": True, "word": "red"}
    assert got == Flat("x", -3, 2.0, "hard", ("a", "cem(n=1,m=2)"), {"b": 1.0, "c": 2.0}, extra, 0.1, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x", "--kind", "hart"], "did you mean 'hard'"),
        (["--out", "x", "--weights", "a=b"], "expected name=number"),
        (["--out", "x", "--low", "one"], "invalid int value"),
    ],
)
def test_wrong_values_say_what_is_legal(words: list[str], message: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=message):
        parse(*words)


def test_checks_of_the_config_itself_run() -> None:
    with pytest.raises(ValueError, match="low 3 > high"):
        parse("--out", "x", "--low", "3")


def test_overrides_build_the_frozen_nested_config() -> None:
    assert compose(Nested, []) == Nested()
    overrides = ["steps=3", "data.path=/a/b-c", "pattern=[x,y]", "limit=4", "+data.mixture.lift=2", "betas=[0,1]"]
    got = compose(Nested, overrides)
    assert got == Nested("tiny", 3, (0.0, 1.0), ("x", "y"), 4, Data("/a/b-c", {"push": 1.0, "lift": 2.0}))
    assert isinstance(got.pattern, tuple)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stesp=3", "unknown key 'stesp'; did you mean 'steps'"),
        ("path=x", "did you mean 'data.path'"),
        ("data.pth=x", "did you mean 'data.path'"),
        ("zzzzz=1", "legal: preset, steps"),
        ("steps=many", "could not be converted to Integer"),
        ("steps", "not of the form key=value"),
        ("preset=tony", "preset=tony: did you mean 'tiny'"),
        ("betas=[1]", "needs 2 values"),
        ("data=3", "Data"),
    ],
)
def test_wrong_overrides_say_what_is_legal(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(Nested, [override])


def test_table_of_keys_shows_the_defaults_that_apply() -> None:
    assert keys(Nested)["data.path"] == ("elsewhere", "folder of the recording.")
    table = describe(Nested)
    assert "steps=10" in table and "limit=null" in table and "  data.path=elsewhere" in table
    assert "\n  data=" not in table
