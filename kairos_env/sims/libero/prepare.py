"""From the benchmarks' own files to the task files of a simulator home (see `catalogue`)."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.runs import atomic_write, write_text
from kairos_env.sims.libero.benchmark_files import (
    BenchmarkFiles,
    Definition,
    ObjectFile,
    SceneFiles,
    read_definition,
    read_init_states,
)
from kairos_env.sims.libero.catalogue import TASK_FILES
from kairos_env.sims.libero.styles import texture_file
from kairos_env.sims.libero.tasks import DIMENSIONS, PRO_DIMENSIONS, PRO_SUITES, SUITES, instruction_of_name

Row = dict[str, Any]

# How LIBERO-plus appends a perturbation to a task's name.
_SUFFIXES = (
    re.compile(
        r"(?:language_(?P<language>\d+)_)?view_(?P<view>\d+_\d+_\d+_\d+_\d+)_initstate_(?P<robot>\d+)"
        r"(?:_noise_(?P<noise>\d+))?"
    ),
    re.compile(r"(?P<kind>table|tb|light|add)_(?P<index>\d+)"),
    re.compile(r"(?:moved_)?level(?P<level>\d+)_sample(?P<sample>\d+)"),
)
# Which dimension a kind of LIBERO-plus's is of, where the name does not give the parameters themselves.
_KINDS = {"table": "background", "tb": "background", "light": "light", "add": "layout"}


@dataclass(frozen=True)
class TaskFiles:
    """What a benchmark adds to a home.

    Attributes:
        rows: of its tasks.
        states: key -> initial states (n, S) float64, for the keys that a row names and that were not known before.
        definitions: path of a task definition in the home -> file to copy.
    """

    rows: Sequence[Row]
    states: Mapping[str, np.ndarray]
    definitions: Mapping[str, Path]

    @classmethod
    def of(cls, rows: Sequence[Row], benchmark: BenchmarkFiles, known: Mapping[str, np.ndarray]) -> TaskFiles:
        """Those of a benchmark's own files; initial states that are ``known`` already are not read again."""
        new = (row for row in rows if row["init"] not in known)
        files = {row["bddl"]: benchmark.package / "bddl_files" / row["bddl"] for row in rows}
        return cls(rows, states_of_rows(new, benchmark), files)

    @classmethod
    def kept(cls, folder: Path, rows: Sequence[Row], known: Mapping[str, np.ndarray]) -> TaskFiles:
        """Those of a home, or of a folder that holds the same files."""
        states = _archived_states(folder / "init_states.npz", {row["init"] for row in rows} - known.keys())
        return cls(rows, states, {row["bddl"]: folder / "bddl" / row["bddl"] for row in rows})


def prepare_tasks(home: Path, libero: BenchmarkFiles, sources: Mapping[str, Path]) -> dict[str, int]:
    """Writes the task files of a home; benchmarks that it has and that are not named stay.

    Args:
        home: folder, which is there.
        libero: LIBERO's own files.
        sources: other benchmarks -> their files, see `BenchmarkFiles`; for LIBERO-plus also a prepared folder
            (``tasks.jsonl``, ``bddl``, ``init_states.npz``).

    Returns:
        benchmark -> number of tasks.

    Raises:
        ValueError: the files are not what they should be.
    """
    parts = {"libero": TaskFiles.of(libero_rows(libero), libero, {})}
    states = dict(parts["libero"].states)
    for benchmark, make in (("libero-plus", libero_plus_rows), ("libero-pro", libero_pro_rows)):
        source = sources.get(benchmark, home)
        listed = source / TASK_FILES[benchmark]
        if listed.is_file():
            rows = prepared_rows(source, libero) if benchmark == "libero-plus" else read_rows(listed)
            parts[benchmark] = TaskFiles.kept(source, rows, states)
        elif benchmark in sources:
            files = BenchmarkFiles(source)
            parts[benchmark] = TaskFiles.of(make(files, libero), files, states)
        else:
            continue
        states |= parts[benchmark].states
    definitions: dict[str, Path] = {}
    for part in reversed(parts.values()):  # a file of LIBERO's own before that of another
        definitions |= part.definitions
    copy_definitions(home / "bddl", definitions)
    write_states(home / "init_states.npz", states)
    for benchmark, part in reversed(parts.items()):
        write_rows(home / TASK_FILES[benchmark], part.rows)
    return {benchmark: len(part.rows) for benchmark, part in parts.items()}


def parse_perturbation(suffix: str) -> dict[str, Any]:
    """What LIBERO-plus appends to a task's name, as parameters: see `tasks.LiberoTask`.

    Raises:
        ValueError: it is none.
    """
    for pattern in _SUFFIXES:
        match = pattern.fullmatch(suffix)
        if match:
            break
    else:
        raise ValueError(f"{suffix!r} does not name a perturbation of LIBERO-plus")
    parts = match.groupdict()
    if "kind" in parts:
        return {"kind": parts["kind"], "index": int(parts["index"])}
    if "level" in parts:
        return {"level": int(parts["level"]), "sample": int(parts["sample"])}
    language = {"language": int(parts["language"])} if parts["language"] else {}
    view = [int(number) for number in parts["view"].split("_")]
    return language | {"view": view, "robot": int(parts["robot"]), "noise": int(parts["noise"] or 0)}


def libero_rows(libero: BenchmarkFiles) -> list[Row]:
    """The tasks of LIBERO, in its order, as rows of ``libero_tasks.jsonl``."""
    scenes, objects = libero.scenes(), libero.objects()
    return [
        _row(suite, index, name, name, "", None, {}, libero.definition(suite, name), scenes, objects)
        for suite, names in libero.suites().items()
        for index, name in enumerate(names)
    ]


def libero_plus_rows(plus: BenchmarkFiles, libero: BenchmarkFiles) -> list[Row]:
    """The tasks of LIBERO-plus, in its order, as rows of ``tasks.jsonl``.

    Raises:
        ValueError: the benchmark's files do not fit together.
    """
    scenes, objects, classification = plus.scenes(), libero.objects() | plus.objects(), plus.classification()
    base_names, rows = libero.suites(), []
    for suite, names in plus.suites(SUITES[:4]).items():  # libero_90 was not perturbed
        longest_first = sorted(base_names[suite], key=len, reverse=True)
        classified = classification[suite] if classification else _known_classes(suite, names)
        definitions: dict[str, Definition] = {}
        for index, name in enumerate(names):
            base = next((base for base in longest_first if name.startswith(f"{base}_")), None)
            if base is None or name not in classified:
                raise ValueError(f"{suite}: {name!r} is no perturbed task of LIBERO, or is not classified")
            params = parse_perturbation(name.removeprefix(f"{base}_"))
            category, difficulty = classified[name]
            file = name.split("_view_")[0]  # what is applied in the simulator needs no definition of its own
            if file not in definitions:
                definitions[file] = plus.definition(suite, file)
            category = category or DIMENSIONS[dimension_of(params)]
            rows.append(
                _row(suite, index, name, base, category, difficulty, params, definitions[file], scenes, objects)
            )
    return rows


def libero_pro_rows(pro: BenchmarkFiles, libero: BenchmarkFiles) -> list[Row]:
    """The tasks of LIBERO-Pro's 16 suites, in its order, as rows of ``libero_pro_tasks.jsonl``.

    Objects that LIBERO does not have are LIBERO's in another colour or size: a file of their own, and a class that does
    what one of LIBERO's does. A row names that one: ``scene["variants"]`` is category -> LIBERO's category.

    Raises:
        ValueError: the benchmark's files do not fit together.
    """
    scenes, own, objects = libero.scenes(), libero.objects(), pro.objects()
    like = {found.behaviour: category for category, found in reversed(own.items())}
    rows = []
    for suite, names in pro.suites(PRO_SUITES).items():
        for index, name in enumerate(names):
            definition = pro.definition(suite, name)
            changed = PRO_DIMENSIONS[PRO_SUITES[suite][1]]
            row = _row(suite, index, name, name, changed, None, {}, definition, scenes, objects | own)
            new = [category for category in definition.categories if category in objects.keys() - own.keys()]
            for category in new:
                own_file = objects[category].file.endswith(f"/{category}.xml")
                if objects[category].behaviour not in like or not own_file:
                    raise ValueError(f"{suite}/{name}: no object of LIBERO behaves like {category!r}")
            variants = {category: like[objects[category].behaviour] for category in new}
            row["scene"] |= {"variants": variants} if variants else {}
            rows.append(row)
    if len(rows) != 10 * len(PRO_SUITES):
        raise ValueError(f"{pro.package} has {len(rows)} of the {10 * len(PRO_SUITES)} tasks of LIBERO-Pro")
    return rows


def dimension_of(params: Mapping[str, Any]) -> str:
    """The dimension of LIBERO-plus, a key of `DIMENSIONS`, that `parse_perturbation`'s parameters are of."""
    if "kind" in params:
        return _KINDS[params["kind"]]
    if "level" in params:
        return "layout"
    if "language" in params:
        return "language"
    return next((name for name in ("noise", "robot") if params[name]), "camera")


def _known_classes(suite: str, names: Sequence[str]) -> dict[str, tuple[str, int | None]]:
    """Name -> no dimension (the name tells it) and the published difficulty, which some copies of the files lack."""
    text = Path(__file__).with_name("libero_plus_difficulty.json").read_text(encoding="utf-8")
    ratings = json.loads(text)[suite]
    if len(ratings) != len(names):
        raise ValueError(f"{suite} has {len(names)} tasks, LIBERO-plus as it was published has {len(ratings)}")
    return {name: ("", int(rating) or None) for name, rating in zip(names, ratings)}


def prepared_rows(folder: Path, libero: BenchmarkFiles) -> list[Row]:
    """The rows of a prepared folder (``tasks.jsonl``, ``bddl/``, ``init_states.npz``), completed for a home.

    Raises:
        ValueError: a row is not one, or disagrees with its own name.
    """
    scenes, objects = libero.scenes(), libero.objects()
    categories: dict[str, tuple[str, ...]] = {}
    rows = []
    for number, line in enumerate((folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name, base, bddl = row["name"], row["base_task"], row["bddl"]
            if row["params"] != parse_perturbation(name.removeprefix(f"{base}_")):
                raise ValueError(f"{name!r} does not say {row['params']}")
            if row["category"] not in DIMENSIONS.values() or row["suite"] not in SUITES:
                raise ValueError(f"category {row['category']!r} or suite {row['suite']!r} is unknown")
            if bddl not in categories:
                categories[bddl] = read_definition(folder / "bddl" / bddl).categories
            scene = dict(row["scene"])
            if scene["scene"] is None:
                scene["scene"] = scenes[row["base_problem"].lower()].scene
            known = [objects[category].file for category in categories[bddl] if category in objects]
            needed = _assets(SceneFiles(None, scene["scene"], scene["floor"], scene["wall"]), known)
            needed = list(dict.fromkeys([*needed, *row.pop("missing_assets", ()), *row.get("assets", ())]))
            row.pop("runnable_with_base_assets", None)
            rows.append(row | {"scene": scene, "assets": needed})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{folder / 'tasks.jsonl'}, line {number}: {type(error).__name__}: {error}") from error
    return rows


def states_of_rows(rows: Iterable[Row], benchmark: BenchmarkFiles) -> dict[str, np.ndarray]:
    """Key -> initial states, for every key that a row names, from the benchmark's files."""
    folder, found = benchmark.package / "init_files", {}
    for row in rows:
        if row["init"] not in found:
            # LIBERO-plus keeps those of changed layouts apart
            own = folder / "libero_newobj" / f"{row['init']}.pruned_init"
            found[row["init"]] = read_init_states(own if own.is_file() else folder / f"{row['init']}.pruned_init")
    return found


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of `write_rows`."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object in a line; the file is whole or not there."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_states(path: Path, states: Mapping[str, np.ndarray]) -> None:
    """An archive of arrays; the file is whole or not there."""
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **states)  # type: ignore[arg-type]


def copy_definitions(folder: Path, sources: Mapping[str, Path]) -> None:
    """Makes ``folder`` hold exactly these task definitions: relative path -> file."""
    with atomic_write(folder) as fresh:
        fresh.mkdir()
        for relative, source in sources.items():
            target = fresh / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _row(
    suite: str,
    index: int,
    name: str,
    base: str,
    category: str,
    difficulty: int | None,
    params: Mapping[str, Any],
    definition: Definition,
    scenes: Mapping[str, SceneFiles],
    objects: Mapping[str, ObjectFile],
) -> Row:
    if definition.problem.lower() not in scenes:
        raise ValueError(f"{suite}/{name}: the benchmark has no problem {definition.problem!r}")
    scene = scenes[definition.problem.lower()]
    own_layout = params.keys() & {"level"} or params.get("kind") == "add"
    named = "language" not in params and suite not in PRO_SUITES
    return {
        "suite": suite,
        "task_id": index,
        "name": name,
        "category": category,
        "difficulty": difficulty,
        "base_task": base,
        "bddl": f"{suite}/{name.split('_view_')[0]}.bddl",
        "init": f"{suite}/{name if own_layout else base}",
        "problem": definition.problem,
        "instruction_base": instruction_of_name(base),
        "instruction_bddl": definition.sentence,
        "instruction_official": instruction_of_name(name) if named else definition.sentence,
        "base_problem": scene.base_problem,
        "scene": {"scene": scene.scene, "floor": scene.floor, "wall": scene.wall},
        "params": dict(params),
        "assets": _assets(scene, [objects[c].file for c in definition.categories if c in objects]),
    }


def _assets(scene: SceneFiles, objects: Iterable[str]) -> list[str]:
    return [scene.scene, texture_file("floor", scene.floor), texture_file("wall", scene.wall), *objects]


def _archived_states(path: Path, keys: set[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: np.atleast_2d(archive[key]).astype(np.float64, copy=False) for key in sorted(keys)}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not hold the initial states of the tasks beside it: {error}") from error
