"""What an imagined episode is for: a task of the model, or words; and whether the model was trained on them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from kairos_env.runs import did_you_mean

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel

logger = logging.getLogger(__name__)

UnknownInstructions = Literal["refuse", "accept"]


class Wish(NamedTuple):
    """An instruction, the name of the task that it is of (empty if of none), and whether the model was trained on it.

    ``known`` is None of models that list no tasks.
    """

    instruction: str
    task: str
    known: bool | None


def check_task(task: str | None, tasks: Mapping[str, str]) -> str | None:
    """Returns ``task``, or raises ValueError with those that there are."""
    if task is None or (isinstance(task, str) and task in tasks):
        return task
    if not isinstance(task, str):
        raise ValueError(
            f"task is {task!r}; it takes one name. Environments of a vector get tasks of their own by "
            "reset(options={'task': [...]})"
        )
    raise ValueError(
        f"the model knows no task {task!r} (wishes in words: reset(options={{'instruction': ...}})); "
        + did_you_mean(str(task), tasks)
    )


def choose_instruction(
    model: WorldModel, words: str | None, task: str | None, seen: str, unknown: UnknownInstructions
) -> Wish:
    """The instruction of an episode: the words that were asked for, else the task's, else the start's, else a default.

    Args:
        model: with the tasks that it was trained on.
        words: asked for; compared with those of the tasks without regard to capitals, punctuation and spaces.
        task: a task's name.
        seen: instruction that came with the first observation. Unknown ones are taken as they are, with a warning.
        unknown: what to do with words that the model was never trained on.

    Raises:
        ValueError: unknown words that were asked for, to be refused.
    """
    tasks = model.tasks
    if words is not None and not isinstance(words, str):
        raise ValueError(f"the reset option 'instruction' takes words, got {words!r}")
    instruction = words or (tasks[task] if task else seen) or model.imagined_spec.instruction
    instruction = instruction or next(iter(tasks.values()), "")
    if not tasks:
        return Wish(instruction, "", None)
    if task and _same(tasks[task], instruction):
        return Wish(tasks[task], task, True)
    for name, text in tasks.items():
        if _same(text, instruction):
            return Wish(text, name, True)
    hint = (
        f"the model was never trained on the instruction {instruction!r}; {did_you_mean(instruction, tasks.values())}"
    )
    if unknown == "accept":
        return Wish(instruction, "", False)
    if words:
        raise ValueError(f"{hint} (to try it all the same: unknown_instructions='accept')")
    logger.warning("%s; info['known_instruction'] says so too", hint)
    return Wish(instruction, "", False)


def _same(one: str, other: str) -> bool:
    return re.findall(r"\w+", one.casefold()) == re.findall(r"\w+", other.casefold())
