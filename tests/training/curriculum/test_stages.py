"""A curriculum as a value: what files may say, and what they may not."""

from __future__ import annotations

from typing import Any

import pytest

from kairos_env.training.curriculum.presets import CURRICULA, get_curriculum
from kairos_env.training.curriculum.stages import from_dict, require_data
from kairos_env.training.gates import Gate

STAGE = {"name": "films", "data": {"path": "films", "captions": 1}, "model": {"steps": 10, "lr": 1}}


def read(**values: Any) -> Any:
    return from_dict(values, CURRICULA)


def test_a_file_says_all_of_a_curriculum() -> None:
    found = read(stages=[STAGE, STAGE | {"name": "robot", "learns": ["video", "action"]}], train={"preset": "debug"})
    assert [found.parent(stage) for stage in found.stages] == ["", "films"]
    first, second = (found.config(stage, "out", "before") for stage in found.stages)
    assert first.learned == {"text", "video"} and second.learned == {"video", "action"}
    assert first.model.lr == 1.0 and first.init_tokenizer == "keep" and first.preset == "debug"


def test_a_file_says_what_differs_from_a_preset() -> None:
    changed = {"video-256": {"data": {"path": "films"}, "model": {"steps": 7}}}
    found = read(base="cedc", keep=["video-256", "world-action"], stages=changed, frames_per_latent=1)
    assert [stage.name for stage in found.stages] == ["video-256", "world-action"]
    first, published = found.stages[0], get_curriculum("cedc").stages[1]
    assert first.data.path == "films" and first.data.size == (256, 448) and first.model.steps == 7
    assert first.model.lr == published.model.lr == 4e-5 and first.model.weight_decay == 1e-3
    with pytest.raises(ValueError, match="no data for world-action: name recordings"):
        require_data(found.stages)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": []}, "curriculum: a curriculum needs at least one stage"),
        ({"stages": [STAGE | {"lr": 1}]}, r"curriculum.stages\[0\] has no 'lr'"),
        ({"stages": [{"data": {"path": "x"}}]}, r"curriculum.stages\[0\] lacks name"),
        ({"stages": [STAGE, STAGE]}, "two stages are called 'films'"),
        ({"stages": [STAGE | {"after": "flims"}]}, "goes on from 'flims'"),
        ({"stages": [STAGE | {"learns": ["tokenizer"]}]}, "the tokenizer is learned once, before the stages"),
        ({"stages": [STAGE | {"learns": ["vidoe"]}]}, r"learns\[0\] is 'vidoe'; did you mean 'video'"),
        ({"stages": [STAGE | {"model": {"steps": "ten", "lr": 1}}]}, "model.steps is 'ten'; expected a number"),
        ({"stages": [STAGE | {"model": {"steps": True, "lr": 1}}]}, "model.steps is True; expected a number"),
        ({"stages": [STAGE | {"model": {"steps": 0, "lr": 1}}]}, "model: steps must be at least 1, got 0"),
        ({"stages": [STAGE | {"data": {"path": "x", "more": "y"}}]}, "data.more is 'y'; expected a list"),
        ({"stages": [STAGE | {"loss": {"conditions": {"t2v": 0.5}}}]}, "are shares that sum to 1"),
        ({"base": "cedcc"}, "base 'cedcc'; did you mean 'cedc'"),
        ({"base": "cedc", "stages": [STAGE]}, "stages is a mapping"),
        ({"base": "cedc", "keep": ["vido-256"]}, "cedc has no stage 'vido-256'; did you mean 'video-256'"),
    ],
)
def test_what_a_file_may_not_say(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**values)


def test_a_name_that_is_none() -> None:
    with pytest.raises(ValueError, match="no curriculum 'laptob', and no such file; did you mean 'laptop'"):
        get_curriculum("laptob")


def test_the_published_values_are_there_and_what_is_not_told_is_marked() -> None:
    rates = {stage.name: stage.model.lr for stage in get_curriculum("cedc").stages}
    assert [rates[n] for n in ("image", "video-256", "video-480", "video-720")] == [5e-5, 4e-5, 3e-5, 2e-5]
    assert [rates[n] for n in ("human", "robot-video", "target")] == [1e-5, 5e-6, 1e-6]
    for stage in get_curriculum("cedc").stages:
        assert {"batch", "model.steps"} <= set(stage.assumed) and "action" not in stage.learns or stage.name[0] == "w"


@pytest.mark.parametrize(
    ("gate", "values", "ends"),
    [
        (Gate("validation_video", bar=0.5), [0.9, 0.6], False),
        (Gate("validation_video", bar=0.5), [0.9, 0.5], True),
        (Gate("psnr_10", bar=20.0), [21.0, 19.0], False),
        (Gate("psnr_10", bar=20.0), [19.0, 21.0], True),
        (Gate("validation_video", patience=2), [0.9, 0.8, 0.85], False),
        (Gate("validation_video", patience=2), [0.9, 0.8, 0.85, 0.8], True),
        (Gate("psnr_10", patience=1), [18.0, 18.5], False),
        (Gate("psnr_10", patience=1), [], False),
        (Gate(), [1.0], False),
    ],
)
def test_gates(gate: Gate, values: list[float], ends: bool) -> None:
    rows = [{"step": 1.0}, *({gate.metric: value} for value in values)]
    assert gate.ended(rows) is ends


def test_gates_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="a gate needs a metric with a bar, a patience, or both"):
        Gate("psnr_10")
    with pytest.raises(ValueError, match="waits for 'psnr_11'; did you mean 'psnr_10'"):
        Gate("psnr_11", bar=1.0).require({"psnr_10": 1.0})
