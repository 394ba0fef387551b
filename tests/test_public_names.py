"""The public names are there, and modules that documents named before say where they are."""

from __future__ import annotations

import importlib

import pytest

import kairos_env
from kairos_env.datasets import lerobot


@pytest.mark.parametrize("name", kairos_env.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(kairos_env, name) is not None


def test_an_unknown_name_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match=r"WorldModle.*WorldModelEnv"):
        _ = kairos_env.WorldModle


@pytest.mark.parametrize("name", lerobot.__all__)
def test_lerobot_reader_and_writer_are_names_of_their_package(name: str) -> None:
    assert getattr(lerobot, name).__name__ == name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from kairos_env.policies import WorldActionPolicy", "WorldModelPolicy"),
        ("from kairos_env.world_model.deploy import compiled", "kairos_env.world_model.deploy.compile.compiled"),
    ],
)
def test_name_of_an_older_version_says_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ImportError, match=new):
        exec(old)


@pytest.mark.parametrize("old", kairos_env._MOVED)
def test_moved_module_says_where_it_is(old: str) -> None:
    new = kairos_env._MOVED[old]
    assert importlib.import_module(new).__name__ == new
    with pytest.raises(ModuleNotFoundError, match=f"{old} is {new} now"):
        importlib.import_module(old)
