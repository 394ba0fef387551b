"""Downloads from the Hugging Face hub, each of one commit, which ``owner/name@revision`` fixes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def is_hub_name(name: str) -> bool:
    """Whether it may be a repository of the hub: ``owner/name`` or ``owner/name@revision``."""
    return _NAME.fullmatch(name) is not None


def download(
    name: str, patterns: Sequence[str], kind: Literal["model", "dataset"] = "model", revision: str | None = None
) -> Path:
    """The folder of a repository's files as they were in one commit.

    Without a revision that is the newest commit, whose number is said: it may be another one tomorrow.

    Args:
        name: see `is_hub_name`; a revision is a commit, tag or branch.
        patterns: of the files that are needed.
        revision: another way of saying it.

    Raises:
        ValueError: no such name, or two revisions. OSError: the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    if not (match := _NAME.fullmatch(name)):
        raise ValueError(f"{name!r} is no hub name; those look like owner/name or owner/name@revision")
    if revision and match["revision"] and revision != match["revision"]:
        raise ValueError(f"{name} and the revision {revision} contradict each other: leave one out")
    wanted = revision or match["revision"]
    options: dict[str, Any] = {"repo_type": kind, "revision": wanted, "allow_patterns": list(patterns)}
    found = Path(snapshot_download(repo_id=match["repository"], **options))
    if wanted is None:  # the cache calls a snapshot by its commit
        logger.warning(
            "%s is at commit %s now; to stay with it, write %s@%s",
            name,
            found.name[:12],
            match["repository"],
            found.name[:12],
        )
    return found
