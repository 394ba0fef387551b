"""The files of LIBERO, LIBERO-plus and LIBERO-Pro, read without running them.

None of the benchmarks' code is run and nothing is unpickled freely: Python files are read as syntax trees of which
only constants are taken, and initial states through torch's reader of arrays.
"""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kairos_env.sims.libero.tasks import SUITES

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


class ObjectFile(NamedTuple):
    """A category of objects: its file, relative to the assets, and its class as text, without its names."""

    file: str
    behaviour: str


class Definition(NamedTuple):
    """What is taken from a task definition."""

    problem: str
    sentence: str
    categories: tuple[str, ...]


class BenchmarkFiles:
    """A folder of the ``libero`` package (``bddl_files``, ``init_files``, ``benchmark``, ``envs``) of a benchmark.

    Args:
        folder: it, or a folder that holds it as ``libero/libero``, as a checkout does, or as ``liberoplus/liberoplus``.

    Raises:
        ValueError: it is not there.
    """

    def __init__(self, folder: Path) -> None:
        inside = (folder / "libero", folder / "libero" / "libero", folder / "liberoplus" / "liberoplus")
        for package in (folder, *inside):
            if (package / "benchmark" / "libero_suite_task_map.py").is_file() and (package / "bddl_files").is_dir():
                self.package = package
                return
        raise ValueError(
            f"{folder} is no folder of LIBERO or LIBERO-plus: libero/libero/benchmark/libero_suite_task_map.py and "
            "libero/libero/bddl_files are expected in it"
        )

    def suites(self, wanted: Iterable[str] = SUITES) -> dict[str, list[str]]:
        """Suite -> names of its tasks, in the benchmark's order; of the wanted suites, those that there are."""
        path = self.package / "benchmark" / "libero_suite_task_map.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "libero_task_map":
                found = ast.literal_eval(node.value)
                return {suite: found[suite] for suite in wanted if suite in found}
        raise ValueError(f"{path} does not list the tasks as libero_task_map = {{...}}")

    def classification(self) -> dict[str, dict[str, tuple[str, int | None]]]:
        """Suite -> name -> official dimension and difficulty, of LIBERO-plus; {} if the file is not among these."""
        path = self.package / "benchmark" / "task_classification.json"
        if not path.is_file():
            return {}
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

    def objects(self) -> dict[str, ObjectFile]:
        """Category of objects -> its file, and what its class does."""
        found: dict[str, ObjectFile] = {}
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
                    found[category] = ObjectFile(own or folder.format(called), _without(node, {category, called}))
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


def read_init_states(path: Path) -> np.ndarray:
    """The initial states of a task, (n, S) float64.

    A ``.pruned_init`` file is a pickle inside torch's archive. It goes through torch's restricted reader, which is told
    to accept what a numpy array is made of and nothing else, so that a file that wants to run something is refused. The
    same array may lie beside that name as ``.npz``, under ``states``.

    Raises:
        ValueError: it holds anything but an array of floating-point numbers.
    """
    archive = path.with_name(f"{path.name}.npz")
    try:
        if archive.is_file():
            with np.load(archive, allow_pickle=False) as arrays:
                states: Any = arrays["states"]
        else:
            states = _unpickled(path)
    except FileNotFoundError as error:
        raise ValueError(f"the initial states {path} are not there") from error
    except Exception as error:  # torch and numpy raise many kinds for a file that is not what it should be
        raise ValueError(f"{path} holds no initial states ({str(error).splitlines()[0]})") from error
    if not isinstance(states, np.ndarray) or states.dtype.kind != "f" or states.ndim not in (1, 2):
        raise ValueError(f"{path} holds {type(states).__name__}, where an array (n, S) of numbers is expected")
    return np.atleast_2d(np.asarray(states, np.float64))


def _unpickled(path: Path) -> Any:
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
    with torch.serialization.safe_globals(parts):
        return torch.load(path, weights_only=True)


def _without(node: ast.ClassDef, names: set[str]) -> str:
    """What a class extends and does, as text, with every constant out of ``names`` blanked."""
    tree = copy.deepcopy(node)
    tree.name, tree.decorator_list = "_", []
    for part in ast.walk(tree):
        if isinstance(part, ast.Constant) and part.value in names:
            part.value = ""
    return ast.unparse(tree)


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
