"""What LIBERO, LIBERO-plus and LIBERO-Pro consist of: suites, dimensions of perturbation, tasks, instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from kairos_env.runs import did_you_mean

BENCHMARKS = ("libero", "libero-plus", "libero-pro")
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
# The end of a suite's name in LIBERO-Pro -> what is changed there, a key of `PRO_DIMENSIONS`.
_PRO_CHANGES = {"lan": "semantic", "object": "object", "swap": "position", "task": "task"}
PRO_SUITES = {f"{suite}_{end}": (suite, changed) for suite in SUITES[:4] for end, changed in _PRO_CHANGES.items()}
"""LIBERO-Pro's suite -> LIBERO's suite that it changes, and the dimension."""
# Our short word for a dimension -> its name in LIBERO-plus.
DIMENSIONS = {
    "camera": "Camera Viewpoints",
    "robot": "Robot Initial States",
    "language": "Language Instructions",
    "light": "Light Conditions",
    "background": "Background Textures",
    "noise": "Sensor Noise",
    "layout": "Objects Layout",
}
# The same of LIBERO-Pro.
PRO_DIMENSIONS = {
    "object": "Object Perturbation",
    "position": "Position Perturbation",
    "semantic": "Semantic Perturbation",
    "task": "Task Perturbation",
}
EVERY_DIMENSION = DIMENSIONS | PRO_DIMENSIONS

# "official" is what the benchmark hands to a policy: for most tasks of LIBERO-plus it is made from the task's name and
# so tells the perturbation ("... view 0 0 100 0 0 initstate 1"); in LIBERO-Pro it is the task definition's, as its
# authors say (its own code hands out the unperturbed sentence). "bddl" is the task definition's own sentence, "base"
# that of the unperturbed task.
Prompt = Literal["official", "bddl", "base"]

_ORIGINALS = "`kairos sims install {0} --assets registry` gets LIBERO's original assets"
ASSETS_ADVICE = {
    "libero": _ORIGINALS.format("libero"),
    "libero-plus": "LIBERO-plus's own scenes and objects are in assets.zip (6.4 GB) of the Hugging Face dataset "
    "Sylvest/LIBERO-plus; give it with --assets",
    "libero-pro": _ORIGINALS.format("libero-pro"),
}


@dataclass(frozen=True)
class LiberoTask:
    """A task of a benchmark.

    Attributes:
        benchmark: one of `BENCHMARKS`.
        suite: one of `SUITES`, or of `PRO_SUITES`.
        index: the benchmark's own number within the suite, from 0.
        name: the benchmark's name, unique within the suite.
        base_task: name of the unperturbed task.
        bddl: file of the task definition, relative to the home's folder of them.
        init: key of the initial states.
        instructions: prompt -> sentence, see `Prompt`.
        dimension: what is perturbed, a key of `EVERY_DIMENSION`; "" for an unperturbed task. LIBERO's tasks have one
            only in `substitute_scenes`, and then ``params["ours"]`` is True: they are not LIBERO-plus's.
        difficulty: 1 (easy) to 5, as the benchmark rates it; None where it does not.
        params: the perturbation: ``view`` (5 integers), ``robot``, ``noise`` and ``language`` (0 is none), or ``kind``
            ("table", "tb", "light", "add") and ``index``, or ``level`` and ``sample``.
        problem: class of the problem in the task definition.
        base_problem: the class of LIBERO that it derives from, for problems that only LIBERO-plus knows.
        scene: ``scene`` (a file of the assets), ``floor`` and ``wall`` (names of styles, see `texture_file`), and
            ``variants``, see `prepare.libero_pro_rows`, where LIBERO-Pro changes objects.
        assets: every file that the task needs, relative to the folder of assets; those that they refer to are not
            listed, but `Catalogue.missing` looks for them as well.
    """

    benchmark: str
    suite: str
    index: int
    name: str
    base_task: str
    bddl: str
    init: str
    instructions: dict[str, str] = field(hash=False)
    dimension: str = ""
    difficulty: int | None = None
    params: dict[str, Any] = field(default_factory=dict, hash=False)
    problem: str = ""
    base_problem: str | None = None
    scene: dict[str, Any] = field(default_factory=dict, hash=False)
    assets: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """``suite/name``, unique within the benchmark."""
        return f"{self.suite}/{self.name}"

    @property
    def qualified_name(self) -> str:
        """``benchmark/suite/name``: how resets, results and jobs name a task."""
        return f"{self.benchmark}/{self.key}"

    @property
    def base_suite(self) -> str:
        """LIBERO's suite that the task is of, or was made from: one of `SUITES`."""
        return base_suite(self.suite)

    @property
    def perturbation(self) -> str:
        """What the name says beyond the unperturbed task: ``"table_1"``; "" for an unperturbed task."""
        return self.name.removeprefix(self.base_task).removeprefix("_")


def base_suite(suite: str) -> str:
    """LIBERO's suite that a suite is, or was made from."""
    return PRO_SUITES.get(suite, (suite, ""))[0]


def short_dimension(name: str) -> str:
    """The key of `EVERY_DIMENSION` for a key or an official name, in any case.

    Raises:
        ValueError: neither; it says what was probably meant.
    """
    wanted = name.strip().lower()
    for short, official in EVERY_DIMENSION.items():
        if wanted in (short, official.lower()):
            return short
    raise ValueError(f"no dimension {name!r}; {did_you_mean(wanted, EVERY_DIMENSION)}")


def instruction_of_name(name: str) -> str:
    """The sentence that LIBERO makes of a task's name: words for underscores, without LIBERO-100's scene."""
    if name[:1].isupper():
        name = re.sub(r"^.*?SCENE(10|\d)_", "", name)
    return name.replace("_", " ")


def as_benchmark_reads(sentence: str) -> str:
    """A sentence of a task definition as the benchmark's reader gives it: in lower case, words one space apart."""
    return " ".join(sentence.lower().split())


def task_of_row(benchmark: str, row: Mapping[str, Any]) -> LiberoTask:
    """The task that a row of a home's task files describes, see `prepare`."""
    if ".." in PurePosixPath(row["bddl"]).parts:
        raise ValueError(f"the task definition {row['bddl']!r} lies outside its folder")
    sentence = as_benchmark_reads(row["instruction_bddl"])
    return LiberoTask(
        benchmark=benchmark,
        suite=row["suite"],
        index=row["task_id"],
        name=row["name"],
        base_task=row["base_task"],
        bddl=row["bddl"],
        init=row["init"],
        instructions={
            # LIBERO-plus takes a rewritten instruction from the task definition, every other from the name
            "official": sentence
            if "language" in row["params"] or benchmark == "libero-pro"
            else instruction_of_name(row["name"]),
            "bddl": sentence,
            "base": instruction_of_name(row["base_task"]),
        },
        dimension=short_dimension(row["category"]) if row["category"] else "",
        difficulty=row["difficulty"],
        params=row["params"],
        problem=row["problem"],
        base_problem=row["base_problem"],
        scene=row["scene"],
        assets=tuple(row["assets"]),
    )
