"""The tasks of LIBERO and LIBERO-plus, read from the task files of a simulator home; no simulator is needed.

A home is made by ``kairos sims install`` (`install`, `prepare`):

    env/                 virtual environment of the simulator
    libero_tasks.jsonl   LIBERO's tasks, in the benchmark's order
    tasks.jsonl          LIBERO-plus's 10,030 tasks, where they were installed
    bddl/<suite>/        task definitions
    init_states.npz      "<suite>/<name>" -> (n, S) float64, states of the simulator to start from
    assets/              meshes, textures and scenes; or assets.path, a file that names another folder
    config/config.yaml   what the ``libero`` package reads when it is imported
    installed.json       versions
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from kairos_env.runs import did_you_mean
from kairos_env.sims.libero.substitute_scenes import SUBSTITUTED, substitute_scenes

BENCHMARKS = ("libero", "libero-plus")
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
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

# "official" is what the benchmark hands to a policy: for most perturbed tasks it is made from the task's name and so
# tells the perturbation ("... view 0 0 100 0 0 initstate 1"). "bddl" is the task definition's own sentence, "base" that
# of the unperturbed task.
Prompt = Literal["official", "bddl", "base"]

ASSETS_ADVICE = {
    "libero": "LIBERO's assets are the Hugging Face dataset lerobot/libero-assets",
    "libero-plus": "LIBERO-plus's assets are assets.zip (6.4 GB) of the Hugging Face dataset Sylvest/LIBERO-plus",
}


@dataclass(frozen=True)
class LiberoTask:
    """A task of a benchmark.

    Attributes:
        benchmark: ``"libero"`` or ``"libero-plus"``.
        suite: one of `SUITES`.
        index: the benchmark's own number within the suite, from 0.
        name: the benchmark's name, unique within the suite.
        base_task: name of the unperturbed task.
        bddl: file of the task definition, relative to the home's folder of them.
        init: key of the initial states.
        instructions: prompt -> sentence, see `Prompt`.
        dimension: what is perturbed, a key of `DIMENSIONS`; "" for an unperturbed task. LIBERO's tasks have one
            only in `substitute_scenes`, and then ``params["ours"]`` is True: they are not LIBERO-plus's.
        difficulty: 1 (easy) to 5, as the benchmark rates it; None where it does not.
        params: the perturbation: ``view`` (5 integers), ``robot``, ``noise`` and ``language`` (0 is none), or ``kind``
            ("table", "tb", "light", "add") and ``index``, or ``level`` and ``sample``.
        problem: class of the problem in the task definition.
        base_problem: the class of LIBERO that it derives from, for problems that only LIBERO-plus knows.
        scene: ``scene`` (a file of the assets), ``floor`` and ``wall`` (names of styles, see `texture_file`).
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
    def perturbation(self) -> str:
        """What the name says beyond the unperturbed task: ``"table_1"``; "" for an unperturbed task."""
        return self.name.removeprefix(self.base_task).removeprefix("_")


class Catalogue:
    """The tasks of a simulator home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._present: dict[str, tuple[str, ...]] = {}  # asset -> what of it is missing

    @classmethod
    def open(cls, home: Path | None = None) -> Catalogue:
        """The catalogue of a home; None is the default one, see `home_folder`.

        Raises:
            FileNotFoundError: there is none, or it was not finished; it says what to run.
        """
        home = home_folder() if home is None else home.expanduser().absolute()
        for name in ("libero_tasks.jsonl", "init_states.npz", "bddl"):
            if not (home / name).exists():
                raise FileNotFoundError(
                    f"no LIBERO in {home}: {name} is not there. Install it with "
                    f"`kairos sims install libero{'' if home == home_folder() else f' --home {home}'}`, or let the "
                    "variable KAIROS_SIMS name the folder that holds another installation"
                )
        return cls(home)

    @cached_property
    def assets(self) -> Path:
        """The folder of meshes, textures and scenes; it need not exist."""
        pointer = self.home / "assets.path"
        return Path(pointer.read_text(encoding="utf-8").strip()) if pointer.is_file() else self.home / "assets"

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of the simulator's packages, as they were installed; {} if nobody noted them."""
        note = self.home / "installed.json"
        found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        return {"python": found["python"], **found["packages"]} if found else {}

    def tasks(
        self,
        benchmark: str,
        suites: Sequence[str] | None = None,
        dimensions: Sequence[str] | None = None,
        difficulties: Iterable[int | None] | None = None,
    ) -> list[LiberoTask]:
        """The tasks of a benchmark, in its order.

        Args:
            benchmark: ``"libero"`` or ``"libero-plus"``.
            suites: names of suites; None is all of them.
            dimensions: keys or values of `DIMENSIONS`; None is all of them.
            difficulties: None within it stands for tasks without a rating.

        Raises:
            ValueError: an unknown word; it says what was probably meant.
            FileNotFoundError: the benchmark is not installed.
        """
        found = self._tasks(benchmark)
        if suites is not None:
            wanted = {self._suite(benchmark, suite) for suite in suites}
            found = [task for task in found if task.suite in wanted]
        if dimensions is not None:
            if benchmark == "libero":
                raise ValueError("LIBERO's tasks are unperturbed; dimensions belong to the benchmark 'libero-plus'")
            shorts = {short_dimension(dimension) for dimension in dimensions}
            found = [task for task in found if task.dimension in shorts]
        if difficulties is not None:
            rated = set(difficulties)
            found = [task for task in found if task.difficulty in rated]
        return found

    def task(self, benchmark: str, suite: str, task: int | str, perturbation: str | None = None) -> LiberoTask:
        """One task.

        Args:
            benchmark: ``"libero"`` or ``"libero-plus"``.
            suite: one of `SUITES`.
            task: name, or index within the suite; or ``benchmark/suite/name``, which overrides both. With a
                perturbation, that of the unperturbed task: 0 ... 9.
            perturbation: what LIBERO-plus appends to that task's name: ``"table_1"``,
                ``"view_0_0_100_2_352_initstate_0"``, ``"language_3_view_0_0_100_0_0_initstate_0"``. For LIBERO, the
                name of one of `substitute_scenes`.

        Raises:
            ValueError: there is no such task; it says what was probably meant.
            FileNotFoundError: the benchmark is not installed.
        """
        if isinstance(task, str) and task.count("/") == 2:
            benchmark, suite, task = task.split("/")
        suite = self._suite(benchmark, suite)
        if not perturbation:
            return self._one(benchmark, suite, task)
        if benchmark == "libero":
            if not perturbation.startswith("ours_"):
                raise ValueError(f"perturbation={perturbation!r}: LIBERO has none; choose the benchmark 'libero-plus'")
            return self._one(benchmark, suite, f"{self._one(benchmark, suite, task).base_task}_{perturbation}")
        names = self._by_name(benchmark, suite)
        base = names[task].base_task if task in names else self._one("libero", suite, task).base_task
        wanted = f"{base}_{perturbation}"
        if wanted not in names:
            known = [found.perturbation for found in names.values() if found.base_task == base]
            raise ValueError(
                f"{suite}/{base} has no perturbation {perturbation!r}; {did_you_mean(perturbation, known)}"
            )
        return names[wanted]

    def substitute_tasks(
        self, suites: Sequence[str] | None = None, dimensions: Sequence[str] | None = None
    ) -> list[LiberoTask]:
        """LIBERO's tasks in the `substitute_scenes` (20 of light, 15 of background, 5 of robot), not among `tasks`."""
        wanted = SUBSTITUTED if dimensions is None else [short_dimension(x) for x in dimensions]
        scenes = [scene for dimension in wanted for scene in substitute_scenes(dimension)]
        return [_in_substitute_scene(task, scene) for task in self.tasks("libero", suites) for scene in scenes]

    def init_states(self, task: LiberoTask) -> np.ndarray:
        """The benchmark's initial states of a task, (n, S) float64: n is 50 for most tasks, 1 for changed layouts."""
        with np.load(self.home / "init_states.npz", allow_pickle=False) as states:
            if task.init not in states:
                raise ValueError(f"{self.home / 'init_states.npz'} has no states {task.init!r}: install LIBERO again")
            return np.atleast_2d(states[task.init]).astype(np.float64, copy=False)

    def bddl_path(self, task: LiberoTask) -> Path:
        """The file of the task definition."""
        return self.home / "bddl" / task.bddl

    def missing(self, task: LiberoTask) -> list[str]:
        """The files that the task needs and that are not in `assets` now; they are looked for once."""
        return list(dict.fromkeys(lost for asset in task.assets for lost in self._missing(asset)))

    def _missing(self, asset: str) -> tuple[str, ...]:
        if asset not in self._present:
            path = self.assets / asset
            if not path.is_file():
                self._present[asset] = (asset,)
            elif path.suffix != ".xml":
                self._present[asset] = ()
            else:  # robosuite takes the files in it relative to its folder, whatever its compiler element says
                text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
                others = {os.path.normpath(path.parent / name) for name in re.findall(r'\bfile="([^"]+)"', text)}
                lost = [other for other in sorted(others) if not os.path.isfile(other)]
                self._present[asset] = tuple(os.path.relpath(other, self.assets) for other in lost)
        return self._present[asset]

    def _tasks(self, benchmark: str) -> list[LiberoTask]:
        if benchmark not in BENCHMARKS:
            raise ValueError(f"no benchmark {benchmark!r}; {did_you_mean(benchmark, BENCHMARKS)}")
        return self._plain if benchmark == "libero" else self._plus

    @cached_property
    def _plain(self) -> list[LiberoTask]:
        return _read_tasks("libero", self.home / "libero_tasks.jsonl")

    @cached_property
    def _plus(self) -> list[LiberoTask]:
        path = self.home / "tasks.jsonl"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.home} has LIBERO, but not the tasks of LIBERO-plus. Get its repository with `git clone "
                "https://github.com/sylvestf/LIBERO-plus` and run `kairos sims install libero-plus --benchmark "
                "LIBERO-plus`"
            )
        return _read_tasks("libero-plus", path)

    def suite_of(self, benchmark: str, name: str) -> str | None:
        """The suite that has a task of this name; None if none has."""
        return next((task.suite for task in self._tasks(benchmark) if task.name == name), None)

    def _suite(self, benchmark: str, suite: str) -> str:
        known = list(dict.fromkeys(task.suite for task in self._tasks(benchmark)))
        if suite not in known:
            raise ValueError(f"{benchmark} has no suite {suite!r}; {did_you_mean(suite, known)}")
        return suite

    def _by_name(self, benchmark: str, suite: str) -> dict[int | str, LiberoTask]:
        return {task.name: task for task in self._tasks(benchmark) if task.suite == suite}

    def _one(self, benchmark: str, suite: str, task: int | str) -> LiberoTask:
        names = self._by_name(benchmark, suite)
        if isinstance(task, str):
            plain, mark, rest = task.partition("_ours_")
            if benchmark == "libero" and mark and plain in names:
                scenes = {scene["name"]: scene for x in SUBSTITUTED for scene in substitute_scenes(x)}
                wanted = f"ours_{rest}"
                if wanted not in scenes:
                    raise ValueError(f"no substitute scene {wanted!r}; {did_you_mean(wanted, scenes)}")
                return _in_substitute_scene(names[plain], scenes[wanted])
            if task not in names:
                raise ValueError(f"{suite} of {benchmark} has no task {task!r}; {did_you_mean(task, map(str, names))}")
            return names[task]
        if not 0 <= task < len(names):
            raise ValueError(f"{suite} of {benchmark} has the tasks 0 ... {len(names) - 1}, not {task}")
        return list(names.values())[task]


def _in_substitute_scene(task: LiberoTask, scene: dict[str, Any]) -> LiberoTask:
    return replace(
        task,
        name=f"{task.name}_{scene['name']}",
        dimension=scene["name"].split("_")[1],
        params=scene,
        assets=(*task.assets, *(f"textures/{name}.png" for name in scene.get("textures", {}).values())),
    )


def home_folder() -> Path:
    """Where LIBERO is installed unless said otherwise: $KAIROS_SIMS/libero, or ~/.cache/kairos/sims/libero."""
    return Path(os.environ.get("KAIROS_SIMS") or "~/.cache/kairos/sims").expanduser().absolute() / "libero"


def short_dimension(name: str) -> str:
    """The key of `DIMENSIONS` for a key or an official name, in any case.

    Raises:
        ValueError: neither; it says what was probably meant.
    """
    wanted = name.strip().lower()
    for short, official in DIMENSIONS.items():
        if wanted in (short, official.lower()):
            return short
    raise ValueError(f"no dimension {name!r}; {did_you_mean(wanted, DIMENSIONS)}")


def instruction_of_name(name: str) -> str:
    """The sentence that LIBERO makes of a task's name: words for underscores, without LIBERO-100's scene."""
    if name[:1].isupper():
        name = re.sub(r"^.*?SCENE(10|\d)_", "", name)
    return name.replace("_", " ")


def as_benchmark_reads(sentence: str) -> str:
    """A sentence of a task definition as the benchmark's reader gives it: in lower case, words one space apart."""
    return " ".join(sentence.lower().split())


def _read_tasks(benchmark: str, path: Path) -> list[LiberoTask]:
    with path.open(encoding="utf-8") as lines:
        try:
            return [_task(benchmark, json.loads(line)) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); install it again") from error


def _task(benchmark: str, row: dict[str, Any]) -> LiberoTask:
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
            "official": sentence if "language" in row["params"] else instruction_of_name(row["name"]),
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
