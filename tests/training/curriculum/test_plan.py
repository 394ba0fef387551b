"""The plan of a curriculum: counted where the machine can, calculated where it cannot."""

from __future__ import annotations

from pathlib import Path

from curriculum_parts import SPEC, small_curriculum

from kairos_env.training.curriculum.plan import make_plan, plan_text
from kairos_env.training.curriculum.presets import get_curriculum


def test_a_small_curriculum_is_measured(tmp_path: Path) -> None:
    curriculum = small_curriculum(tmp_path / "data", tmp_path / "out")
    plan = make_plan(curriculum, SPEC)
    assert [stage.name for stage in plan.stages] == ["tokenizer", "films", "robot"] and plan.measured
    films = plan.stages[1]
    assert (films.steps, films.clips, films.frames, films.tokens) == (6, 24, 4, 24 * 4 * 16)
    assert films.flops > 0 and films.memory > 0
    assert plan.stages[2].flops > films.flops  # the action expert learns, too


def test_the_published_curriculum_is_calculated_and_says_so() -> None:
    curriculum = get_curriculum("cedc")
    plan = make_plan(curriculum, SPEC)
    by_name = {stage.name: stage for stage in plan.stages}
    assert not plan.measured and plan.parameters > 4e9 and "tokenizer" not in by_name
    clip = by_name["video-480"]
    assert clip.frames == 21 and clip.tokens == 10_000 * 256 * 21 * (480 // 16) * (832 // 16)
    text = plan_text(curriculum, SPEC)
    assert "calculated, memory without activations" in text and "time: of 8 H100" in text
    assert "* the source does not tell batch, model.steps" in text
