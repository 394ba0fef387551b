"""What a generator of films makes: pictures, and what is true of them in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kairos_env.records import Array


@dataclass(frozen=True)
class GeneratedFilm:
    """A film with its captions, all of them from the true state.

    Args:
        frames: uint8 (T, H, W, 3).
        caption: what happens, in detail.
        instruction: the same in short.
        facts: further JSON values, such as the steps of a task.
    """

    frames: Array
    caption: str
    instruction: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def sentence(*phrases: str) -> str:
    """Phrases that are not empty as a sentence: "a ball falls", "rolls away" -> "A ball falls and rolls away."."""
    given = [phrase for phrase in phrases if phrase]
    text = ", ".join(given[:-1]) + (" and " if len(given) > 1 else "") + given[-1]
    return text[0].upper() + text[1:] + "."
