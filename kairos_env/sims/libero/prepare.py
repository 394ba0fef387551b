"""From the benchmarks' own files to the task files of a simulator home (see `tasks`).

None of the benchmarks' code is run and nothing is unpickled freely: Python files are read as syntax trees of which
only constants are taken, and initial states through torch's reader of arrays.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kairos_env.runs import atomic_write, write_text
from kairos_env.sims.libero.styles import texture_file
from kairos_env.sims.libero.tasks import DIMENSIONS, SUITES, instruction_of_name

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
# Where LIBERO's classes of objects look for the file of an object.
_OBJECT_FOLDERS = {
    "GoogleScannedObject": "stable_scanned_objects/{0}/{0}.xml",
    "HopeBaseObject": "stable_hope_objects/{0}/{0}.xml",
    "TurbosquidObjects": "turbosquid_objects/{0}/{0}.xml",
    "ArticulatedObject": "articulated_objects/{0}.xml",
}


class SceneFiles(NamedTuple):
    """What a class of problems shows around the objects: a file of the assets, and styles of floor and wall."""

    base_problem: str | None
    scene: str
    floor: str
    wall: str


class Definition(NamedTuple):
    """What is taken from a task definition."""

    problem: str
    sentence: str
    categories: tuple[str, ...]


class BenchmarkFiles:
    """A folder of the ``libero`` package (``bddl_files``, ``init_files``, ``benchmark``, ``envs``), LIBERO's or
    LIBERO-plus's.

    Args:
        folder: it, or a folder that holds it as ``libero/libero``, as a checkout does.

    Raises:
        ValueError: it is not there.
    """

    def __init__(self, folder: Path) -> None:
        for package in (folder, folder / "libero", folder / "libero" / "libero"):
            if (package / "benchmark" / "libero_suite_task_map.py").is_file() and (package / "bddl_files").is_dir():
                self.package = package
                return
        raise ValueError(
            f"{folder} is no folder of LIBERO or LIBERO-plus: libero/libero/benchmark/libero_suite_task_map.py and "
            "libero/libero/bddl_files are expected in it"
        )

    def suites(self) -> dict[str, list[str]]:
        """Suite -> names of its tasks, in the benchmark's order."""
        path = self.package / "benchmark" / "libero_suite_task_map.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "libero_task_map":
                found = ast.literal_eval(node.value)
                return {suite: found[suite] for suite in SUITES if suite in found}
        raise ValueError(f"{path} does not list the tasks as libero_task_map = {{...}}")

    def classification(self) -> dict[str, dict[str, tuple[str, int | None]]]:
        """Suite -> name -> official dimension and difficulty, of LIBERO-plus."""
        path = self.package / "benchmark" / "task_classification.json"
        if not path.is_file():
            raise ValueError(f"{path} is not there: only LIBERO-plus has it, and its tasks cannot be sorted without it")
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            suite: {entry["name"]: (entry["category"], entry["difficulty_level"]) for entry in entries}
            for suite, entries in found.items()
        }

    def scenes(self) -> dict[str, SceneFiles]:
        """Class of problems, in lower case -> its scene. A class takes what it does not set from the one it extends."""
        classes: dict[str, tuple[str, dict[str, str]]] = {}
        for tree in self._trees("problems"):
            for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
                found: dict[str, str] = {}
                for mapping in (n for n in ast.walk(node) if isinstance(n, ast.Dict)):
                    for key, value in zip(mapping.keys, mapping.values):
                        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                            found.setdefault(str(key.value), str(value.value))
                classes[node.name] = (getattr(node.bases[0], "id", "") if node.bases else "", found)

        def setting(name: str, key: str) -> str:
            base, found = classes.get(name, ("", {}))
            return found.get(key) or (setting(base, key) if base else "")

        return {
            name.lower(): SceneFiles(
                base if base in classes else None,
                *(setting(name, key) for key in ("scene_xml", "floor_style", "wall_style")),
            )
            for name, (base, _) in classes.items()
        }

    def objects(self) -> dict[str, str]:
        """Category of objects -> its file, relative to the assets."""
        found: dict[str, str] = {}
        for tree in self._trees("objects"):
            classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
            for name, node in classes.items():
                base = node
                while base.name not in _OBJECT_FOLDERS and base.bases and base.bases[0].id in classes:  # type: ignore[attr-defined]
                    base = classes[base.bases[0].id]  # type: ignore[attr-defined]
                folder = _OBJECT_FOLDERS.get(base.name, "")
                own = next((part.split("assets/", 1)[1] for part in _strings(node) if part.startswith("assets/")), "")
                called = _default(node, "obj_name")
                if own or (folder and called):
                    # the benchmark's rule for the name of a category: _ before every capital and digit
                    category = "_".join(re.sub(r"([A-Z0-9])", r" \1", name).split()).lower()
                    found[category] = own or folder.format(called)
        return found

    def definition(self, suite: str, name: str) -> Definition:
        """The task definition ``bddl_files/<suite>/<name>.bddl``."""
        return read_definition(self.package / "bddl_files" / suite / f"{name}.bddl")

    def _trees(self, part: str) -> Iterator[ast.Module]:
        for path in sorted((self.package / "envs" / part).glob("*.py")):
            yield ast.parse(path.read_text(encoding="utf-8"))


def read_definition(path: Path) -> Definition:
    """Problem, sentence and categories of objects of a BDDL file.

    Raises:
        ValueError: it is not there, or not a task definition.
    """
    if not path.is_file():
        raise ValueError(f"the task definition {path} is not there")
    text = re.sub(r";.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    problem = re.search(r"\(define\s*\(problem\s+([^\s()]+)\s*\)", text)
    sentence = re.search(r"\(:language\s+([^()]*)\)", text)
    if not problem or not sentence:
        raise ValueError(f"{path} is not a task definition: (define (problem ...) and (:language ...) are expected")
    categories = {
        word: None
        for section in re.findall(r"\(:(?:objects|fixtures)\b([^()]*)\)", text)
        for word in re.findall(r"\s-\s+(\S+)", section)
    }
    return Definition(problem.group(1), sentence.group(1).strip(), tuple(categories))


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
    for suite, names in plus.suites().items():
        if suite not in classification:  # libero_90 was not perturbed
            continue
        longest_first = sorted(base_names[suite], key=len, reverse=True)
        definitions: dict[str, Definition] = {}
        for index, name in enumerate(names):
            base = next((base for base in longest_first if name.startswith(f"{base}_")), None)
            if base is None or name not in classification[suite]:
                raise ValueError(f"{suite}: {name!r} is no perturbed task of LIBERO, or is not classified")
            category, difficulty = classification[suite][name]
            file = name.split("_view_")[0]  # what is applied in the simulator needs no definition of its own
            if file not in definitions:
                definitions[file] = plus.definition(suite, file)
            params = parse_perturbation(name.removeprefix(f"{base}_"))
            rows.append(
                _row(suite, index, name, base, category, difficulty, params, definitions[file], scenes, objects)
            )
    return rows


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
            known = [objects[category] for category in categories[bddl] if category in objects]
            needed = _assets(SceneFiles(None, scene["scene"], scene["floor"], scene["wall"]), known)
            needed = list(dict.fromkeys([*needed, *row.pop("missing_assets", ()), *row.get("assets", ())]))
            row.pop("runnable_with_base_assets", None)
            rows.append(row | {"scene": scene, "assets": needed})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{folder / 'tasks.jsonl'}, line {number}: {type(error).__name__}: {error}") from error
    return rows


def read_init_states(path: Path) -> np.ndarray:
    """The initial states of a ``.pruned_init`` file, (n, S) float64.

    The file is a pickle inside torch's archive. It goes through torch's restricted reader, which is told to accept
    what a numpy array is made of and nothing else, so that a file that wants to run something is refused.

    Raises:
        ValueError: it holds anything but an array of floating-point numbers.
    """
    import torch

    reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    parts: list[Any] = [
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
    ]
    try:
        with torch.serialization.safe_globals(parts):
            states = torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"the initial states {path} are not there") from error
    except Exception as error:  # torch raises many kinds for a file that is not what it should be
        raise ValueError(f"{path} holds no initial states ({str(error).splitlines()[0]})") from error
    if not isinstance(states, np.ndarray) or states.dtype.kind != "f" or states.ndim not in (1, 2):
        raise ValueError(f"{path} holds {type(states).__name__}, where an array (n, S) of numbers is expected")
    return np.atleast_2d(np.asarray(states, np.float64))


def states_of_rows(rows: Iterable[Row], benchmark: BenchmarkFiles) -> dict[str, np.ndarray]:
    """Key -> initial states, for every key that a row names, from the benchmark's files."""
    folder, found = benchmark.package / "init_files", {}
    for row in rows:
        if row["init"] not in found:
            # LIBERO-plus keeps those of changed layouts apart
            own = folder / "libero_newobj" / f"{row['init']}.pruned_init"
            found[row["init"]] = read_init_states(own if own.is_file() else folder / f"{row['init']}.pruned_init")
    return found


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
    objects: Mapping[str, str],
) -> Row:
    if definition.problem.lower() not in scenes:
        raise ValueError(f"{suite}/{name}: the benchmark has no problem {definition.problem!r}")
    scene = scenes[definition.problem.lower()]
    own_layout = params.keys() & {"level"} or params.get("kind") == "add"
    read = definition.sentence if "language" in params else instruction_of_name(name)
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
        "instruction_official": read,
        "base_problem": scene.base_problem,
        "scene": {"scene": scene.scene, "floor": scene.floor, "wall": scene.wall},
        "params": dict(params),
        "assets": _assets(scene, [objects[c] for c in definition.categories if c in objects]),
    }


def _assets(scene: SceneFiles, objects: Iterable[str]) -> list[str]:
    return [scene.scene, texture_file("floor", scene.floor), texture_file("wall", scene.wall), *objects]


def _strings(node: ast.AST) -> Iterator[str]:
    return (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _default(node: ast.ClassDef, argument: str) -> str:
    """The default value of an argument of a class's ``__init__``; "" if it has none."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            arguments = method.args.args[len(method.args.args) - len(method.args.defaults) :]
            for found, value in zip(arguments, method.args.defaults):
                if found.arg == argument and isinstance(value, ast.Constant):
                    return str(value.value)
    return ""
