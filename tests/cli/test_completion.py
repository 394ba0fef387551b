"""The shell completes commands, options and choices."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kairos_env.cli import main as cli

LINES = [
    (["kairos", "rec"], {"record", "record-libero"}),
    (["kairos", "eval", ""], {"closed-loop", "table", "compare", "correlation"}),
    (["kairos", "eval", "table", "runs/x", "--p"], {"--published"}),
    (["kairos", "train", "--model.s"], {"--model.steps"}),
    (["kairos", "generate", "--dtype", ""], {"bfloat16", "float32"}),
    (["kairos", "completion", ""], {"bash", "zsh", "fish"}),
]


@pytest.fixture(scope="module", params=["bash", "fish"])
def script(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A shell that is here, and its script."""
    shell = request.param
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    capture = pytest.MonkeyPatch()
    lines: list[str] = []
    with capture.context() as patch:
        patch.setattr("builtins.print", lambda text: lines.append(text))
        assert cli.main(["completion", shell]) == 0
    return program, "\n".join(lines)


@pytest.mark.parametrize(("words", "expected"), LINES, ids=[" ".join(words) for words, _ in LINES])
def test_completion(script: tuple[str, str], words: list[str], expected: set[str]) -> None:
    program, text = script
    if program.endswith("bash"):
        quoted = " ".join(f"'{word}'" for word in words)
        ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _kairos; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    else:
        ask = f"complete -C '{' '.join(words)}'"
    done = subprocess.run([program, "-c", f"{text}\n{ask}"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert expected <= {line.split("\t")[0] for line in done.stdout.splitlines()}
