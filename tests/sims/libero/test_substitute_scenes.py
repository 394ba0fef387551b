"""Scenes that stand in for the benchmark's: marked, named apart."""

from __future__ import annotations

import json

import pytest

from kairos_env.sims.libero.substitute_scenes import SUBSTITUTED, substitute_scenes


def test_substitute_scenes_are_marked_and_named_apart() -> None:
    scenes = [scene for dimension in SUBSTITUTED for scene in substitute_scenes(dimension)]
    assert all(scene["ours"] is True for scene in scenes)
    assert len({scene["name"] for scene in scenes}) == len(scenes) == 40
    assert all(scene["name"].endswith(f"_{scene['kind']}_{scene['strength']}") for scene in scenes)
    assert json.loads(json.dumps(scenes)) == scenes
    with pytest.raises(ValueError, match="light, background, robot"):
        substitute_scenes("noise")
