"""Whether OpenGL draws is found out in a process of its own, with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from kairos_env.sims import findings


def test_a_backend_that_is_not_there_comes_with_a_command() -> None:
    found = findings.check_drawing("no-such-backend")
    assert found.status == "problem" and found.text.startswith("fails: ") and "apt-get install" in found.remedy


def test_a_program_that_dies_or_hangs_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_PROGRAM", "import os; os._exit(7)")
    assert findings.check_drawing("egl").text == "fails: exit 7"
    monkeypatch.setattr(findings, "_PROGRAM", "import time; time.sleep(60)")
    assert findings.check_drawing("egl", timeout=0.5).text == "no frame within 0.5 s"


def test_a_blank_frame_is_a_problem_even_if_the_driver_does_not_complain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_PROGRAM", """print('{"spread": 0.0, "ms": 1.0, "driver": "odd"}')""")
    assert findings.check_drawing("egl").text == "draws blank frames (odd)"
