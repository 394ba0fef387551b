"""Words that a model was never trained on are not silently accepted."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
from counting_model import CountingModel, observation

from kairos_env.env.env import WorldModelEnv
from kairos_env.env.vector_env import WorldModelVectorEnv


def counting_env(**settings: Any) -> WorldModelEnv:
    return WorldModelEnv(CountingModel(), **settings)


def test_unknown_words_are_refused_with_the_nearest_known_ones() -> None:
    env = counting_env()
    with pytest.raises(ValueError, match=r"never trained on the instruction 'do nothin'; did you mean 'do nothing'"):
        env.reset(options={"instruction": "do nothin"})
    with pytest.raises(ValueError, match="unknown_instructions='accept'"):
        env.reset(options={"instruction": "make some coffee"})


def test_paraphrases_can_be_tried() -> None:
    _, info = counting_env(unknown_instructions="accept").reset(options={"instruction": "please stand still"})
    assert (info["known_instruction"], info["task"], info["instruction"]) == (False, "", "please stand still")


def test_capitals_and_punctuation_do_not_matter() -> None:
    _, info = counting_env().reset(options={"instruction": "Do  nothing."})
    assert (info["known_instruction"], info["task"], info["instruction"]) == (True, "wait", "do nothing")


def test_the_words_of_data_are_flagged(caplog: pytest.LogCaptureFixture) -> None:
    given = dataclasses.replace(observation(), instruction="simulated dance")
    env = counting_env()
    with caplog.at_level(logging.WARNING):
        _, info = env.reset(options={"observation": given})
    assert info["known_instruction"] is False and info["instruction"] == "simulated dance"
    assert "never trained on the instruction 'simulated dance'" in caplog.text
    *_, info = env.step(env.action_space.sample())
    assert info["known_instruction"] is False, "every step says so"
    assert env.reset(options={"task": "wait"})[1]["known_instruction"] is True


def test_many_at_once_say_it_of_each() -> None:
    envs = WorldModelVectorEnv(3, CountingModel(), unknown_instructions="accept")  # type: ignore[arg-type]
    _, info = envs.reset(options={"instruction": "sing"})
    assert info["known_instruction"].tolist() == [False] * 3 and info["_known_instruction"].all()


def test_a_model_without_tasks_knows_no_words_to_refuse() -> None:
    model = CountingModel()
    model.tasks = {}
    _, info = WorldModelEnv(model).reset(options={"instruction": "sing"})  # type: ignore[arg-type]
    assert info["instruction"] == "sing" and "known_instruction" not in info


def test_only_two_ways_to_treat_unknown_words() -> None:
    with pytest.raises(ValueError, match="use 'refuse' or 'accept'"):
        counting_env(unknown_instructions="ignore")


def test_a_task_and_words_of_another_are_refused() -> None:
    env = counting_env()
    words = env.model.tasks["wait"]
    with pytest.raises(ValueError, match="task 'count' and the instruction .*, which is of 'wait'; pass one of them"):
        env.reset(options={"task": "count", "instruction": words})
    assert env.reset(options={"task": "wait", "instruction": words})[1]["task"] == "wait"
    with pytest.raises(ValueError, match=r"task is \['count', 'wait'\]; it takes one name"):
        counting_env(task=["count", "wait"])
