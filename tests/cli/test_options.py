"""The parameters of a function, and the fields of its config, are the options of its command."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from kairos_env.cli.options import Fields, OptionError, Positional, bind, options


@dataclass(frozen=True)
class Loop:
    """A loop.

    Args:
        steps: how many.
        betas: of the optimiser.
    """

    steps: int = 10
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Config:
    """A config.

    Args:
        output: where results go; 100 %
            sure.
        low, high: the range.
        kind: what it is.
        loop: how long.

    Raises:
        ValueError: low > high.
    """

    output: str
    low: int = 0
    high: float = 1.5
    kind: Literal["soft", "hard"] = "soft"
    names: tuple[str, ...] = ("a",)
    weights: dict[str, float] = field(default_factory=lambda: {"a": 0.5})
    extra: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None
    fast: bool = False
    loop: Loop = field(default_factory=lambda: Loop(steps=7))
    benchmark: str = field(default="fixed", init=False)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} > high {self.high}")


def command(config: Fields[Config], where: Path | None = None, labels: bool = True) -> int:
    """A command.

    Args:
        where: a folder.
        labels: use them.
    """
    raise NotImplementedError


def compare(first: Positional[Path], second: Positional[Path], json: bool = False) -> int:
    """Another.

    Args:
        first: a run.
        second: another run.
        json: print JSON.
    """
    raise NotImplementedError


def install(simulator: Positional[Literal["libero", "libero-plus"]]) -> int:
    """A fourth.

    Args:
        simulator: which one.
    """
    raise NotImplementedError


def table(runs: Positional[tuple[Path, ...]], out: str = "") -> int:
    """A third.

    Args:
        runs: folders.
        out: whereto.
    """
    raise NotImplementedError


def given(*words: str, to: Any = command) -> dict[str, Any]:
    return bind(to, words, "kairos test").keywords  # type: ignore[attr-defined]


def parse(*words: str) -> Config:
    config = given("--out", "x", *words)["config"]
    assert isinstance(config, Config)
    return config


def test_defaults_are_those_of_the_code() -> None:
    assert given("--out", "x") == {"config": Config("x"), "where": None, "labels": True}
    assert parse().loop == Loop(steps=7)


def test_every_type_has_a_spelling() -> None:
    words = "--low -3 --high=2 --kind hard --names a,cem(n=1,m=2) --weights b,c=2 --limit 0.1 --fast --loop.steps 3"
    got = parse(*words.split(), "--extra", "n=3,flag=True,word=red", "--loop.betas", "0,1")
    assert (got.low, got.high, got.kind, got.names) == (-3, 2.0, "hard", ("a", "cem(n=1,m=2)"))
    assert got.weights == {"b": 1.0, "c": 2.0} and got.extra == {"n": 3, "flag": True, "word": "red"}
    assert (got.limit, got.fast, got.loop) == (0.1, True, Loop(3, (0.0, 1.0)))
    assert parse("--limit", "None").limit is None
    assert given("--out", "x", "--no-labels", "--where", "a/b") == {
        "config": Config("x"),
        "where": Path("a/b"),
        "labels": False,
    }


def test_the_last_of_two_counts_and_both_names_of_a_field_are_understood() -> None:
    assert parse("--low", "1", "--low", "0", "--fast", "--no-fast") == Config("x")
    assert given("--output", "y")["config"] == Config("y")


def test_the_older_spelling_of_training_means_the_same() -> None:
    got = parse("low=1", "names=[x,y]", "limit=null", "fast=true", "loop.betas=[0,1]", "+loop.steps=4")
    assert got == Config("x", low=1, names=("x", "y"), fast=True, loop=Loop(4, (0.0, 1.0)))
    assert given("output=runs/a-b")["config"].output == "runs/a-b"


def test_positional_arguments_stand_without_a_flag(tmp_path: Path) -> None:
    assert given("a", "--json", "b", to=compare) == {"first": Path("a"), "second": Path("b"), "json": True}
    assert given("a", "b", "k=v", to=table)["runs"] == (Path("a"), Path("b"), Path("k=v"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--stesp 3", "unknown option --stesp; did you mean '--loop.steps'"),
        ("--loop.stesp=3", "did you mean '--loop.steps'"),
        ("stesp=3", "unknown option stesp; did you mean '--loop.steps'"),
        ("--zzzzz 1", "legal: --out, --output, --low"),
        ("more", "unknown option more"),
        ("-x 1", "unknown option -x"),
        ("--kind hart", "--kind: 'hart'; did you mean 'hard'"),
        ("kind=hart", "kind: 'hart'; did you mean 'hard'"),
        ("--weights a=b", "expected name=number"),
        ("--extra a", "'a'; expected name=value"),
        ("--low one", "--low: 'one'; expected a whole number"),
        ("--low 1.5", "expected a whole number"),
        ("--high x", "--high: 'x'; expected a number"),
        ("--limit x", "expected a number"),
        ("--loop.betas 1", "'1'; expected 2 values"),
        ("--fast=maybe", "'maybe'; expected true or false"),
        ("--no-fast=true", "takes no value"),
        ("--low", "--low needs a value: the range"),
        ("--low --fast", "--low needs a value"),
        ("--low 3", "low 3 > high 1.5"),
        ("--benchmark x", "unknown option --benchmark"),
        ("--config nowhere.yaml", "there is no file nowhere.yaml"),
    ],
)
def test_wrong_words_say_what_is_legal(words: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match=message.replace("[", r"\[")):
        parse(*words.split())
    assert capfd.readouterr() == ("", "")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(OptionError, match=r"missing: --out \(where results go; 100 % sure\)"):
        given()
    with pytest.raises(OptionError, match=r"missing: SECOND \(another run\)"):
        given("a", to=compare)
    with pytest.raises(OptionError, match="unknown option --config"):
        given("a", "b", "--config", "c.yaml", to=compare)
    with pytest.raises(OptionError, match="unexpected 'c'"):
        given("a", "b", "c", to=compare)
    with pytest.raises(OptionError, match="SIMULATOR: 'liber'; did you mean 'libero'"):
        given("liber", to=install)
    with pytest.raises(OptionError, match=r"missing: RUNS \(folders\)"):
        given(to=table)


def test_options_tell_of_sections_defaults_and_help() -> None:
    known = {option.flag: option for option in options(command)}
    assert list(known)[:3] == ["--out", "--low", "--high"] and "--benchmark" not in known
    assert known["--loop.steps"].default == 7 and known["--loop.steps"].help == "how many"
    assert known["--high"].help == "the range" and known["--where"].help == "a folder"
    assert known["--labels"].flags == {"--labels": "true", "--no-labels": "false"}


def test_the_help_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        bind(command, ["--low", "x", "--help"], "kairos test", "What it does.\n\nexamples:\n  kairos test --out x")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "examples:\n  kairos test --out x" in text
    text = " ".join(text.replace("│", " ").split())
    assert "where results go; 100 % sure (required)" in text and "(default: a=0.5)" in text
    assert "--loop.steps INT how many (default: 7)" in text and "benchmark" not in text
    assert "--config FILE reads options from YAML" in text


def test_a_file_gives_options_and_words_beside_it_count(tmp_path: Path) -> None:
    run = tmp_path / "config.json"
    run.write_text(json.dumps({"output": "y", "weights": {"b": 2}, "limit": None, "loop": {"betas": [0, 1]}}))
    expected = Config("y", weights={"b": 2.0}, loop=Loop(betas=(0.0, 1.0)))
    assert given("--config", str(run))["config"] == Config("y", weights={"b": 2.0}, loop=Loop(7, (0.0, 1.0)))
    assert given("--config", str(run), "--loop.steps", "10")["config"] == expected

    (tmp_path / "base.yaml").write_text("low: 1\nfast: true\nloop: {steps: 3}\n")
    (tmp_path / "mine.yaml").write_text("defaults: [base, _self_]\noutput: z\nloop: {steps: 4}\n")
    assert given(f"--config={tmp_path / 'mine.yaml'}")["config"] == Config("z", low=1, fast=True, loop=Loop(4))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "a.json"),
        ("a.json", "[1]", "must hold options by name, found a list"),
        ("a.json", '{"loww": 1}', "unknown option --loww; did you mean '--low'"),
        ("a.yaml", "low: [", "a.yaml"),
        ("a.yaml", "low: \0", "a.yaml: unacceptable character"),
        ("a.yaml", "1: 2", "unknown option --1"),
        ("a.yaml", "defaults: [nowhere]", "nowhere"),
    ],
)
def test_a_file_that_is_wrong_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match=message):
        parse("--config", str(tmp_path / name))
