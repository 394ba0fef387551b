"""A training run as one page: curves, validation, film strips of the last validations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from kairos_env.eval.report.chart import Chart, Curve
from kairos_env.eval.report.page import Figure, Section, data_address, machine_note, render_page, small_jpeg, text_of
from kairos_env.runs import write_text
from kairos_env.training.log import TIMES
from kairos_env.training.summary import STAGES, TrainingSummary, read_summary

PAGE = "report.html"
VALIDATIONS = 6  # the table shows at most so many, the last one among them
POINTS = 200  # of a curve
STRIPS = 2  # film strips of so many validations are shown
_HORIZON = re.compile(r"(?P<name>.+?)_(?P<horizon>\d+)(?P<copy>_copy)?")


def write_training_page(folder: str | Path) -> Path:
    """Writes the page of a training run, or of a model that brought its log, into its folder.

    Raises:
        FileNotFoundError: neither of them.
    """
    path = Path(folder) / PAGE
    write_text(path, training_page(folder))
    return path


def training_page(folder: str | Path) -> str:
    """The page of `write_training_page`."""
    summary = read_summary(folder)
    sections = [*summary_sections(summary), *(_curves(summary, stage) for stage in STAGES), _strips(Path(folder))]
    note = machine_note(summary.launches[-1]) if summary.launches else ""
    title = f"Training of {summary.config.get('out', folder)}"
    return render_page(title, [section for section in sections if section is not None], note)


def training_text(folder: str | Path) -> str:
    """Progress, time and validation of a training run as aligned text."""
    return text_of(summary_sections(read_summary(folder)))


def summary_sections(summary: TrainingSummary) -> list[Section]:
    """How far each stage is, what it took, and the last validations, as tables."""
    lines = []
    for stage in STAGES:
        if not (rows := summary.training(stage)):
            continue
        wanted = summary.config.get(stage, {}).get("steps", 0)
        hours = [f"{summary.spent(stage, what) / 3600:.2f}" for what in ("cpu_seconds", "seconds")]
        lines.append([stage, f"{summary.steps(stage)} of {wanted}", *hours, f"{rows[-1]['loss']:.4g}"])
    notes = [
        f"Changed at the launch of {launch['time']}: "
        + "; ".join(f"{key} from {before} to {after}" for key, (before, after) in launch["changed"].items())
        for launch in summary.launches
        if launch.get("changed")
    ]
    header = ["stage", "steps", "CPU-hours", "hours", "loss"]
    sections = [Section("Progress", 2, header=header, lines=lines, notes=notes)]
    shown = [row for row in summary.validations() if len(row) > 1][-VALIDATIONS:]
    if shown:
        names = list(dict.fromkeys(key for row in shown for key in row if key != "step"))
        table = [[name, *(f"{row[name]:.4g}" if name in row else "–" for row in shown)] for name in names]
        header = ["after steps", *(str(int(row["step"]) + 1) for row in shown)]
        sections.append(Section("Validation, held-out episodes", 2, header=header, lines=table))
    return sections


def _curves(summary: TrainingSummary, stage: str) -> Section | None:
    rows, checks = summary.training(stage), summary.validations(stage)
    if not rows:
        return None
    losses = [key for key in rows[-1] if key not in ("step", "lr", "grad_norm", *TIMES)]
    charts = []
    for key in losses:
        curves = [_curve("training", rows, key), _curve("validation", checks, f"validation_{key}", colour=1)]
        charts.append(Chart(key, curves, "step", logarithmic=not key.startswith("psnr")))
    groups: dict[str, list[Curve]] = {}
    others = dict.fromkeys(key for row in checks for key in row)
    for key in others:
        if key == "step" or key.removeprefix("validation_") in losses:
            continue
        if found := _HORIZON.fullmatch(key):  # of several horizons, and of a copied frame
            group = groups.setdefault(found["name"], [])
            colour = len({curve.name.split(",")[0] for curve in group} - {found["horizon"]})
            name = f"{found['horizon']}, copy" if found["copy"] else found["horizon"]
            group.append(_curve(name, checks, key, colour, dashed=bool(found["copy"])))
        else:
            groups[key] = [_curve(key, checks, key)]
    charts += [Chart(name, curves, "step") for name, curves in groups.items()]
    charts += [Chart(key, [_curve(key, rows, key)], "step", key == "grad_norm") for key in ("lr", "grad_norm")]
    charts.append(Chart("steps a second", [_curve("rate", rows, "steps_per_second")], "step"))
    return Section(f"Stage {STAGES.index(stage) + 1}: {stage}", 2, charts=charts, page_only=True)


def _curve(name: str, rows: Sequence[Mapping[str, float]], key: str, colour: int = 0, dashed: bool = False) -> Curve:
    """The values of a key; of many rows the means of neighbours, `POINTS` in all."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    size = -(-len(points) // POINTS) or 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]
    return Curve(name, means, dashed, colour)


def _strips(folder: Path) -> Section | None:
    """Film strips of the last validations, the newest first."""
    newest = sorted((folder / "strips").glob("step_*"))[: -STRIPS - 1 : -1]
    figures = [
        Figure(
            f"after {int(step.name.removeprefix('step_'))} steps, held-out episode {strip.stem}",
            data_address(small_jpeg(strip.read_bytes()), "jpeg"),
        )
        for step in newest
        for strip in sorted(step.glob("*.png"))
    ]
    return Section("Imagined and real", 2, figures=figures, page_only=True) if figures else None
