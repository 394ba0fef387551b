"""What a check of a machine or an installation finds, and the check that needs no simulator: does OpenGL draw?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Status = Literal["ok", "note", "problem"]
MARKS: Mapping[Status, str] = {"ok": "ok", "note": "--", "problem": "!!"}

GL_REMEDY = (
    "sudo apt-get install -y libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libosmesa6 (Debian, Ubuntu; elsewhere: "
    "Mesa's EGL or OSMesa), and MUJOCO_GL=egl or osmesa"
)

# Prints one JSON line. A blank frame counts as a failure: a broken driver may draw without complaint.
_PROGRAM = """
import json, time
import mujoco
from OpenGL import GL
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="plane" size="1 1 .1" rgba=".8 .2 .2 1"/>'
    '<geom type="box" size=".1 .1 .1" pos="0 0 .1" rgba="0 0 1 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data)
renderer.render()
start = time.perf_counter()
frame = renderer.render()
milliseconds = 1000 * (time.perf_counter() - start)
name = GL.glGetString(GL.GL_RENDERER)
print(json.dumps({"spread": float(frame.std()), "ms": milliseconds, "driver": name.decode() if name else "?"}))
renderer.close()
"""


class Finding(NamedTuple):
    """A line of a check: what was looked at, how it stands, and what would mend it."""

    name: str
    status: Status
    text: str
    remedy: str = ""


def findings_text(findings: Sequence[Finding], width: int = 0) -> str:
    """A line for each finding, and one for what would mend it.

    Args:
        findings: at least one.
        width: of the names' column; 0: as wide as they need.
    """
    width = width or max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"  {MARKS[finding.status]}  {finding.name:<{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"      {'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)


def check_drawing(backend: str, python: str | Path = sys.executable, timeout: float = 60.0) -> Finding:
    """Draws a frame off-screen, in a process of its own: a GL library that is wrong often ends it instead of raising.

    Args:
        backend: value of the variable ``MUJOCO_GL``.
        python: interpreter with MuJoCo.
        timeout: seconds.
    """
    variables = os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    isolated = [] if python == sys.executable else ["-I"]  # this one's packages are none of another's
    command = [python, *isolated, "-c", _PROGRAM]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Finding(backend, "problem", f"no frame within {timeout:g} s", GL_REMEDY)
    try:
        # Read even if the exit status is bad: some drivers crash only while the process ends.
        seen = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return Finding(backend, "problem", f"fails: {last_line(done.stderr) or f'exit {done.returncode}'}", GL_REMEDY)
    if seen["spread"] < 1:
        return Finding(backend, "problem", f"draws blank frames ({seen['driver']})", GL_REMEDY)
    return Finding(backend, "ok", f"draws ({seen['driver']}, {seen['ms']:.1f} ms for a small frame)")


def last_line(text: str) -> str:
    """The last line that is not empty: of a traceback, the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
