"""The card of a trained model: what it is, how it was made, what was measured. It is the README.md of its folder.

Everything in it is read from the folder: ``config.json``, ``training.json`` (`write_summary`) and ``measured.json``
(`add_measurement`). What somebody wrote below `OWN_WORDS` stays.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from kairos_env.datasets.card import field_table, hub_header, table
from kairos_env.runs import write_json, write_text
from kairos_env.training.summary import STAGES, SUMMARY, TrainingSummary, read_summary
from kairos_env.world_model import checkpoint
from kairos_env.world_model.checkpoint import HORIZONS, MEASURED, read_measured

CARD = "README.md"
OWN_WORDS = "<!-- What stands below is written by hand and stays. -->"
_FILES = {
    checkpoint.CONFIG: "shapes, defaults, robot, tasks",
    checkpoint.WEIGHTS: "weights",
    checkpoint.STATISTICS: "normalisation of latents and proprioception",
    checkpoint.STARTS: "first observations of held-out episodes, from which imagination starts without a simulator",
    SUMMARY: "how it was trained: resolved configuration, data, versions and time of every launch",
    "training.jsonl": "the log of the training, thinned; `kairos train-report` on this folder draws it",
    MEASURED: "what was measured afterwards",
}


@dataclass(frozen=True)
class Measurement:
    """A table that an evaluation found of a model.

    Args:
        title: of the table.
        header, lines: texts.
        notes: conditions under which it holds.
        command: that measured it.
        versions: of this package, and the commit, with the time.
    """

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    command: str = ""
    versions: str = ""


def add_measurement(folder: str | Path, kind: str, measurement: Measurement) -> None:
    """Puts a table into a model's ``measured.json``, in place of an older one of the same kind."""
    write_json(Path(folder) / MEASURED, read_measured(folder) | {kind: asdict(measurement)})


def write_card(folder: str | Path, name: str = "") -> Path:
    """Writes the card of a model's folder, or writes it anew.

    Args:
        folder: with a trained model.
        name: of the model; by default that of the folder, or of the run whose ``model`` it is.

    Raises:
        CheckpointError: no model there.
        FileNotFoundError: nothing says how it was trained.
    """
    folder = Path(folder)
    path = folder / CARD
    _, marker, own = path.read_text(encoding="utf-8").partition(OWN_WORDS) if path.exists() else ("", "", "")
    place = folder.resolve()
    name = name or (place.parent.name if place.name == "model" else place.name)
    write_text(path, f"{model_card(folder, name)}\n{OWN_WORDS}{own if marker else chr(10)}")
    return path


def model_card(folder: str | Path, name: str) -> str:
    """Markdown of what is known of a model."""
    folder = Path(folder)
    stored, summary = checkpoint.read(folder), read_summary(folder)
    spec = stored.spec
    lines = hub_header(
        {"library_name": "kairos-env", "pipeline_tag": "robotics", "tags": ["kairos", "robotics", "world-model"]}
    )
    lines += [
        f"# {name}",
        "",
        f"A world-action model of {spec.name}: a Gymnasium environment, a policy, and something to plan in. "
        f"{spec.control_rate_hz:g} decisions a second, {len(stored.tasks)} tasks:",
        "",
        *(f"- {task}: {instruction}" for task, instruction in stored.tasks.items()),
        "",
        *field_table(spec),
        "",
        f"Preset `{stored.config.preset}`, {_size(folder)}.",
        "",
        *table(["file", ""], [[f"`{file}`", text] for file, text in _FILES.items() if (folder / file).exists()]),
        "",
        *_untrained(stored.config.untrained),
        *_recipe(summary),
        *_validation(summary),
        *_measured(read_measured(folder)),
    ]
    return "\n".join(lines)


def _untrained(names: Sequence[str]) -> list[str]:
    return [f"No episode taught it {', '.join(names)}: do not read these.", ""] if names else []


def _size(folder: Path) -> str:
    """Number of weights of each part, in words."""
    counts: Counter[str] = Counter()
    kinds = set()
    with safe_open(folder / checkpoint.WEIGHTS, "np") as file:
        for key in file.keys():
            part = file.get_slice(key)
            counts[key.split(".")[0]] += math.prod(part.get_shape())
            kinds.add(part.get_dtype())
    parts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.most_common())
    return f"{counts.total() / 1e6:.2f} M weights ({parts}), stored as {' and '.join(sorted(kinds))}"


def _recipe(summary: TrainingSummary) -> list[str]:
    """Command, data, machine and time."""
    commands = dict.fromkeys(_command(launch["command"]) for launch in summary.launches)
    lines = ["## How it was made", "", "```bash", *commands, "```", "", *_data(summary)]
    rows = []
    for stage in STAGES:
        if steps := summary.steps(stage):
            hours = [f"{summary.spent(stage, what) / 3600:.2f}" for what in ("cpu_seconds", "seconds")]
            rows.append([stage, str(steps), *hours])
    total = sum(summary.spent(stage) for stage in STAGES) / 3600
    lines += [*table(["stage", "steps", "CPU-hours", "hours"], rows), ""]
    launches = f"launched {len(summary.launches)} times; what a kill made it do twice counts once"
    lines += [f"{total:.2f} CPU-hours, {launches}.", ""]
    for launch in summary.launches:
        for key, (before, after) in launch.get("changed", {}).items():
            lines.append(f"- from {launch['time']} on `{key}` {json.dumps(after)}, before {json.dumps(before)}")
    if summary.launches:
        last = summary.launches[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        commit = f", commit {last['commit'][:12]}" if last.get("commit") else ""
        lines += ["", f"{last['processor']}, {last.get('threads', last['cores'])} threads; {versions}{commit}."]
    return [*lines, ""]


def _command(words: Sequence[str]) -> str:
    program = "kairos" if words[0] in ("kairos", "__main__.py") else words[0]
    return shlex.join([program, *words[1:]])


def _data(summary: TrainingSummary) -> list[str]:
    recordings = summary.config.get("data", {})
    lines = [f"- `{path}`" for path in (recordings.get("path"), *recordings.get("more", ())) if path]
    if init := summary.config.get("init"):
        lines.append(f"- weights: goes on from `{init}`")
    data = summary.data
    if data:
        held_out = summary.config["validation"] + summary.config["starts"]
        lines.append(f"- {data['episodes']} episodes, {data['decisions']} decisions; {held_out} episodes held out")
        lines += [f"- {name}: {_shares(data[name])}" for name in ("behaviours", "tasks") if data.get(name)]
    return [*lines, ""]


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name or 'unnamed'} {count / total:.0%}" for name, count in counts.items())


def _validation(summary: TrainingSummary) -> list[str]:
    """The last validation of held-out episodes."""
    checks = summary.validations()
    if not checks:
        return []
    last = checks[-1]
    rows = [[f"`{key}`", f"{value:.4g}"] for key, value in last.items() if key != "step"]
    title = f"## Validation after {int(last['step']) + 1} steps"
    return [title, "", "Held-out episodes; `docs/training.md` says what each is.", "", *table(["", ""], rows), ""]


def _measured(measured: Mapping[str, Any]) -> list[str]:
    lines = ["## Measured", ""]
    if horizons := measured.get(HORIZONS):
        lines += ["Imagination may be believed up to so many decisions:", ""]
        lines += [*table(["task", "decisions"], [[task, str(number)] for task, number in horizons.items()]), ""]
    for kind, values in measured.items():
        if kind == HORIZONS:
            continue
        found = Measurement(**values)
        lines += [f"### {found.title}", "", *table(found.header, found.lines), ""]
        lines += [note + "\n" for note in found.notes]
        lines += [f"`{found.command}` ({found.versions})", ""] if found.command else []
    return lines if len(lines) > 2 else []
