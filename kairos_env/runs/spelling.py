"""What a word that nobody knows may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """The end of a message about an unknown word: the nearest known ones, or what is legal.

    Dotted words are also compared by their last parts, since people forget the section of a key.
    """
    names = [str(name) for name in known]
    tails = {_last_part(name): name for name in names}
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    close += [tails[tail] for tail in difflib.get_close_matches(_last_part(str(word)), tails, n=1, cutoff=0.75)]
    if close:
        return f"did you mean {' or '.join(repr(name) for name in dict.fromkeys(close))}?"
    return f"legal: {', '.join(names[:24]) or 'none'}" + (f" and {len(names) - 24} more" if len(names) > 24 else "")


def _last_part(name: str) -> str:
    return name.rpartition(".")[2].lstrip("-")
