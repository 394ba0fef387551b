"""A small LIBERO, LIBERO-plus and LIBERO-Pro in the layout of their repositories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from kairos_env.sims.libero.tasks import PRO_SUITES

TASK = "put_the_cup_on_the_plate"
DEFINITION = """(define (problem LIBERO_Desk) ; a comment (with brackets)
  (:domain robosuite)
  (:language {sentence})
  (:regions (r (:target desk) (:ranges ((0 0 1 1)))))
  (:fixtures
    desk - table
  )
  (:objects
    cup_1 cup_2 - red_cup
    plate_1 - plate{more}
  )
  (:goal (And (On cup_1 plate_1))))
"""
PROBLEMS = """
@register_problem
class Libero_Desk(BDDLBaseDomain):
    def __init__(self, bddl_file_name, *args, **kwargs):
        raise SystemExit("nobody runs this")
        kwargs.update({"scene_xml": "scenes/desk.xml"})
        kwargs.update({"scene_properties": {"floor_style": "light-gray", "wall_style": "white"}})
"""
OBJECTS = """
class GoogleScannedObject(MujocoXMLObject):
    def __init__(self, name, obj_name): ...

class RedCup(GoogleScannedObject):
    def __init__(self, name="red_cup", obj_name="cup_red"): ...

class Plate(GoogleScannedObject):
    def __init__(self, name="plate", obj_name="plate"): ...
"""
# what LIBERO-plus adds
PROBLEMS_PLUS = """
class Libero_Desk_Stone(Libero_Desk):
    def __init__(self, bddl_file_name, *args, **kwargs):
        kwargs.update({"scene_xml": "scenes/desk_stone.xml"})
"""
OBJECTS_PLUS = """
class AlarmClock_1(CustomObjects):
    def __init__(self, name="alarm_clock__1", obj_name="alarm_clock__1"):
        path = os.path.join(str(absolute_path), f"assets/new_objects/clock/clock.xml")
"""
# what LIBERO-Pro adds
OBJECTS_PRO = """
class GreenCup(GoogleScannedObject):
    def __init__(self, name="green_cup", obj_name="green_cup"): ...
"""
PERTURBED = {
    "table_1": ("Background Textures", 2),
    "view_0_15_100_2_352_initstate_0": ("Camera Viewpoints", 3),
    "language_3_view_0_0_100_0_0_initstate_0": ("Language Instructions", 5),
    "add_4": ("Objects Layout", None),
}


def write_benchmark(folder: Path, names: list[str], plus: bool) -> Path:
    """A small benchmark in the layout of LIBERO's repository."""
    package = folder / "libero" / "libero"
    for part in ("benchmark", "bddl_files/libero_goal", "init_files/libero_goal", "envs/problems", "envs/objects"):
        (package / part).mkdir(parents=True)
    (package / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = { ({'libero_goal': names}) }\n")
    (package / "envs" / "problems" / "desk.py").write_text(PROBLEMS + (PROBLEMS_PLUS if plus else ""))
    (package / "envs" / "objects" / "things.py").write_text(OBJECTS + (OBJECTS_PLUS if plus else ""))
    states = np.arange(12.0).reshape(3, 4)
    torch.save(states, package / "init_files" / "libero_goal" / f"{TASK}.pruned_init")
    (package / "bddl_files" / "libero_goal" / f"{TASK}.bddl").write_text(
        DEFINITION.format(sentence="Put the  cup on the plate", more="")
    )
    if plus:
        own = package / "init_files" / "libero_newobj" / "libero_goal"
        own.mkdir(parents=True)
        torch.save(states[0], own / f"{TASK}_add_4.pruned_init")
        for name, sentence, more in (
            (f"{TASK}_table_1", "Put the cup", ""),
            (f"{TASK}_language_3", "Now  be Kind", ""),
            (f"{TASK}_add_4", "Put the cup", "\n    c - alarm_clock__1"),
        ):
            text = DEFINITION.format(sentence=sentence, more=more)
            text = text.replace("LIBERO_Desk", "Libero_Desk_Stone") if "table" in name else text
            (package / "bddl_files" / "libero_goal" / f"{name}.bddl").write_text(text)
        entries = [
            {"id": i, "name": f"{TASK}_{suffix}", "category": category, "difficulty_level": level}
            for i, (suffix, (category, level)) in enumerate(PERTURBED.items(), start=1)
        ]
        (package / "benchmark" / "task_classification.json").write_text(json.dumps({"libero_goal": entries}))
    return folder


def write_pro(folder: Path) -> Path:
    """A small LIBERO-Pro in its layout: ten tasks in each suite, one object in another colour."""
    package, names = folder / "libero" / "libero", [f"{TASK}_{index}" for index in range(10)]
    for part in ("benchmark", "envs/problems", "envs/objects"):
        (package / part).mkdir(parents=True)
    suites = dict.fromkeys(PRO_SUITES, names)
    (package / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {suites}\n")
    (package / "envs" / "objects" / "things.py").write_text(OBJECTS + OBJECTS_PRO)
    for suite in PRO_SUITES:
        for part in ("bddl_files", "init_files"):
            (package / part / suite).mkdir(parents=True)
        text = DEFINITION.format(sentence="Put the  cup on the plate", more="")
        text = text.replace("red_cup", "green_cup") if suite.endswith("_object") else text
        for name in names:
            (package / "bddl_files" / suite / f"{name}.bddl").write_text(text)
            np.savez(package / "init_files" / suite / f"{name}.pruned_init.npz", states=np.ones((2, 4)))
    return folder
