"""What a RoboTwin installation is said to hold, from its files alone; both layouts of its checkouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from robotwin_home import robotwin_home

from kairos_env.sims.robotwin.home import CHECKOUT, REVISION, RoboTwinHome, home_folder

TASKS = {
    "stack_blocks_two": "self.block1 = create_box()\nself.reward = Reward.build_top({})",
    "place_shoe": "create_actor(modelname='041_shoe')",
}


def checkout(folder: Path, configs: str) -> Path:
    """The files of a checkout that are read without a simulator."""
    for name, code in TASKS.items():
        (folder / "envs").mkdir(parents=True, exist_ok=True)
        (folder / "envs" / f"{name}.py").write_text(code)
        words = folder / "description" / "task_instruction"
        words.mkdir(parents=True, exist_ok=True)
        (words / f"{name}.json").write_text(json.dumps({"full_description": f"<do> {name}"}))
    (words / "no_code.json").write_text("{}")
    (folder / configs).mkdir(parents=True)
    (folder / configs / "_eval_step_limit.yml").write_text("stack_blocks_two: 800\n# more\n")
    return folder


@pytest.mark.parametrize(("configs", "layout"), [("task_config", "2.0"), ("env_cfg/task_config", "newest")])
def test_checkouts_of_both_layouts(configs: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKOUT, str(checkout(tmp_path / "RoboTwin", configs)))
    home = RoboTwinHome.open(tmp_path / "home")
    assert home.layout == layout and home.tasks() == {name: f"do {name}" for name in sorted(TASKS)}
    assert (home.step_limit("stack_blocks_two"), home.step_limit("place_shoe")) == (800, 1000)
    assert home.has_dense_reward("stack_blocks_two") and not home.has_dense_reward("place_shoe")
    assert home.missing("place_shoe") == ["embodiments/aloha-agilex/config.yml", "objects/041_shoe"]
    assert home.assets == tmp_path / "home" / "assets"
    (tmp_path / "RoboTwin" / "assets" / "embodiments").mkdir(parents=True)
    assert home.assets == tmp_path / "RoboTwin" / "assets" and home.variables()["ASSETS_PATH"] == str(home.code)


def test_what_is_no_checkout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKOUT, str(tmp_path))
    with pytest.raises(ValueError, match=r"KAIROS_ROBOTWIN_ROOT: .* is no checkout of RoboTwin 2.0: envs/ and task"):
        RoboTwinHome.open(tmp_path)


def test_nothing_installed_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAIROS_SIMS", str(tmp_path))
    monkeypatch.delenv(CHECKOUT, raising=False)
    assert home_folder() == tmp_path / "robotwin"
    with pytest.raises(FileNotFoundError, match="`kairos sims install robotwin`"):
        RoboTwinHome.open()
    with pytest.raises(FileNotFoundError, match=f"`kairos sims install robotwin --home {tmp_path}/other`"):
        RoboTwinHome.open(tmp_path / "other")


def test_the_tasks_of_the_package() -> None:
    home = RoboTwinHome.open(robotwin_home())
    tasks = home.tasks()
    whole = [task for task in tasks if not home.missing(task)]
    assert len(tasks) == 50 and home.versions["rlinf-robotwin-runtime"] == "0.1.3"
    five = ["blocks_ranking_rgb", "blocks_ranking_size", "handover_block", "stack_blocks_three", "stack_blocks_two"]
    assert whole == five
    assert [home.step_limit(task) for task in whole] == [1200, 1200, 800, 1200, 800]
    assert sum(home.has_dense_reward(task) for task in tasks) == 18
    assert home.missing("place_can_basket") == ["objects/071_can", "objects/110_basket"]
    assert "background_texture/unseen" in home.missing("stack_blocks_two", "randomized")
    with pytest.raises(ValueError, match="did you mean 'stack_blocks_two'"):
        home.require_task("stack_block_two")
    assert not home.official_assets


def test_assets_are_official_if_they_say_so(tmp_path: Path) -> None:
    home = RoboTwinHome(tmp_path, tmp_path / "code", "package")
    (tmp_path / "assets").mkdir()
    assert not home.official_assets
    (tmp_path / ".robotwin-assets.json").write_text(json.dumps({"revision": REVISION}))
    assert home.official_assets
