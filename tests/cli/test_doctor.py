"""The doctor tells the truth about this machine, and never raises when something is broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kairos_env.cli import doctor
from kairos_env.cli import main as cli
from kairos_env.sims.findings import Finding, Status


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = cli.main(["doctor", *options])
    return status, capsys.readouterr().out


def test_installed_core_packages_are_in_their_ranges() -> None:
    findings = list(doctor.check_packages())
    assert {"torch", "gymnasium", "safetensors"} <= {f.name for f in findings}
    assert [f for f in findings if f.status == "problem"] == []


def test_missing_and_outdated_packages_come_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"": ["no-such-package>=1", "numpy>=99"], "odd": ["another-missing-one"]}
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    _, missing, outdated = doctor.check_packages()
    assert missing.status == outdated.status == "problem"
    assert missing.text == "not installed" and missing.remedy.endswith("'no-such-package>=1'")
    assert "numpy>=99 is needed" in outdated.text
    (extra,) = doctor.check_extras()
    assert extra.status == "note" and "another-missing-one" in extra.text
    assert extra.remedy.endswith("'kairos-env[odd]'")


def test_version_other_than_the_tested_one_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: {"": ["numpy"]})
    monkeypatch.setattr(doctor, "tested_versions", lambda: {"numpy": "1.0"})
    *_, finding = doctor.check_packages()
    assert finding.status == "note" and "tested with 1.0" in finding.text


def test_constraints_name_a_version_for_every_core_requirement() -> None:
    tested = doctor.tested_versions()
    names = [f.name.lower() for f in doctor.check_packages()][1:]
    assert [name for name in names if name not in tested] == []


def test_json_report_of_rendering(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    status, out = run(capsys, "--gl-only", "--json")
    findings = json.loads(out)
    assert {f["name"] for f in findings} >= {"egl", "osmesa"}
    works = [f for f in findings if f["status"] == "ok"]
    assert status == (0 if works else 1)
    assert all("draws" in f["text"] for f in works)


def test_without_any_renderer_the_command_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    findings = doctor.check_rendering(backends=["no-such-backend"])
    assert findings[0].status == "note" and "fails" in findings[0].text
    assert findings[-1].status == "problem" and "apt-get install" in findings[-1].remedy


def test_broken_choice_of_backend_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    works: dict[str, Status] = {"egl": "ok"}
    monkeypatch.setattr(doctor, "check_drawing", lambda name: Finding(name, works.get(name, "problem"), "draws"))
    finding = doctor.check_rendering()[-1]
    assert finding.status == "problem" and finding.remedy == "export MUJOCO_GL=egl"


def test_without_the_simulator_the_model_works_and_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (finding,) = doctor.check_rendering()
    assert finding.status == "note" and finding.remedy.endswith("'kairos-env[sim]'")
    status, out = run(capsys)
    assert status == 0 and out.splitlines()[-1] == "The model works; the simulator is not installed."
    status, _ = run(capsys, "--gl-only")
    assert status == 1


def test_models_missing_truncated_and_whole(tmp_path: Path) -> None:
    (missing,) = doctor.check_models(tmp_path, "model")
    assert missing.status == "problem" and "nothing" in missing.text

    for name in ("model", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"w": np.zeros((8, 8), np.float32)}, tmp_path / name / "model.safetensors")
    findings = list(doctor.check_models(tmp_path, "model"))
    assert [(f.name, f.status) for f in findings] == [("model", "ok"), ("another", "ok")]

    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    broken, _ = doctor.check_models(tmp_path, "model")
    assert broken.status == "problem" and "model.safetensors" in broken.text


def test_device_always_reports_the_processor() -> None:
    findings = list(doctor.check_device())
    assert findings[0].name == "cpu" and "cores" in findings[0].text


def test_report_for_people_ends_with_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys)
    assert out.splitlines()[-1].startswith("Everything" if status == 0 else "1 problem")
    assert "Off-screen rendering" in out and "Extras" in out
