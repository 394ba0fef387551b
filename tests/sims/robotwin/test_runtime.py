"""What RoboTwin's code is given in its interpreter: modules that it need not have, and a folder to run in."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from kairos_env.sims.robotwin.runtime import Runtime, _NotNeeded


def test_modules_that_are_not_needed_take_whatever_is_done_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _NotNeeded()])
    try:
        util = importlib.import_module("curobo.util")
        util.logger.setup_logger(level="error", logger_name="curobo")  # a checkout of version 2.0 does when imported
        assert isinstance(util.logger("name"), util.logger)
        with pytest.raises(ImportError):
            importlib.import_module("kurobo")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "curobo"]:
            del sys.modules[name]


@pytest.mark.parametrize("own", [True, False], ids=["assets of the checkout", "assets elsewhere"])
def test_a_checkout_can_be_imported_without_any_objects(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads lists of objects for clutter when it is imported."""
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "RoboTwin"
    assets = code / "assets" if own else tmp_path / "assets"
    (code / "envs").mkdir(parents=True)
    (assets / "embodiments" / "aloha-agilex").mkdir(parents=True)
    (assets / "objects" / "041_shoe").mkdir(parents=True)
    runtime = Runtime.__new__(Runtime)
    runtime._code, runtime._assets = code, assets
    runtime._enter_checkout()
    assert Path("envs").resolve() == code / "envs" and Path("assets/objects/041_shoe").is_dir()
    assert Path("assets/embodiments/aloha-agilex").is_dir()
    assert json.loads(Path("assets/objects/objaverse/list.json").read_text())["item_names"] == []
    assert json.loads(Path("assets/objects/same.json").read_text()) == {}
    assert not (assets / "objects" / "same.json").exists()
    for name in ("objaverse/list.json", "same.json"):  # now it has its own
        (assets / "objects" / name).parent.mkdir(exist_ok=True)
        (assets / "objects" / name).write_text('{"mine": 1}')
    runtime._enter_checkout()
    assert json.loads(Path("assets/objects/same.json").read_text()) == {"mine": 1}
    assert (Path.cwd() == code) == own
