"""The command line answers quickly, teaches, and says what was wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kairos_env.cli import doctor
from kairos_env.cli import main as cli


def leaves(group: cli.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for word, command in group.commands.items():
        found += leaves(command, (*path, word)) if isinstance(command, cli.Group) else [(*path, word)]
    return found


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in cli.COMMANDS)
    assert cli.main([]) == 2


def test_overview_is_immediate_and_imports_nothing_heavy() -> None:
    # Processor time, because tests run beside others; 0.15 s on a quiet machine.
    program = (
        "import sys, time, kairos_env.cli.main; kairos_env.cli.main.main(['--help']);"
        "print(time.process_time(), sorted({'torch', 'mujoco', 'h5py', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert heavy == "[]"
    assert float(seconds) < 0.6


@pytest.mark.parametrize("path", leaves(cli.ROOT), ids=" ".join)
def test_every_command_teaches_with_examples(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples:" in out and f"kairos {' '.join(path)}" in out


def test_typo_in_a_command_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recrod"]) == 2
    assert "did you mean 'record'?" in capsys.readouterr().err


def test_unmet_request_is_one_readable_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(args: object) -> int:
        raise ValueError("episodes must be at least 1, got 0")

    monkeypatch.setattr(doctor, "main", run)
    monkeypatch.setattr(cli, "COMMANDS", {"fail": cli.Command("fails", "kairos fail", "doctor")})
    monkeypatch.setattr(cli, "ROOT", cli.Group("", "", cli.COMMANDS))
    assert cli.main(["fail"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kairos fail: episodes must be at least 1, got 0") and "Traceback" not in error
    with pytest.raises(ValueError):
        cli.main(["fail", "--traceback"])


def test_wrong_record_request_writes_nothing(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", "--out", f"{tmp_path}/r", "--behaviours", "expret"]) == 2
    assert "unknown behaviour expret" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("kairos ")
