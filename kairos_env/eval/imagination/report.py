"""Results of a comparison of imagination and reality: every episode's numbers, means, intervals, tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.eval.report.page import html_page
from kairos_env.eval.report.text import format_table, plain
from kairos_env.eval.statistics import Interval, mean, ratio, wilson
from kairos_env.media import film_strip, png_bytes, side_by_side, write_mp4
from kairos_env.records import Array
from kairos_env.runs import describe_machine, write_bytes, write_text

CONDITIONS = ("imagined", "shuffled", "zero", "copy", "mean", "codec")
METRICS = (
    *("psnr", "ssim", "mse", "gripper_cm", "own_gripper_cm", "gripper_moved_cm", "own_gripper_moved_cm"),
    "opening_right",
    *("cube_cm", "cube_there", "cube_counted", "red_ratio"),
)
MOVING_PATH_CM = 10.0
"""An episode is moving if the gripper travels at least this far ..."""
MOVING_DECISIONS = 20
"""... in so many decisions after the last observed frame."""
CUBE_MOVED_CM = 2.0
"""The cube has moved at a horizon if it is then at least this far from where it was last observed."""
PSNR_LIMIT = 60.0
"""Identical 8-bit frames have infinite PSNR; means are taken over values cut off here."""


@dataclass(frozen=True)
class ImaginationReport:
    """Every episode's numbers, and what they come to.

    Args:
        horizons: decisions after the last observed frame.
        values: condition -> metric -> float64 (episodes, horizons); nan where an episode is too short or a
            metric has no meaning (``own_gripper_cm``, the model's own proprioception, of a copied frame).
            ``gripper_moved_cm``: how far the gripper is from where it was last observed; under actions of zero it
            should not be. ``opening_right``: 1 if the probe sees the gripper as far open as it is, to a quarter of
            its range. ``cube_there``: 1 if the probe sees the cube; ``red_ratio``: red pixels over those of the
            real frame. These two and ``cube_cm`` are of frames in which the real cube is in view. ``cube_counted``: 1
            if there are as many spots of its colour as in the real frame, no phantom and none lost.
        cube_moved_cm: (episodes, horizons), how far the real cube has moved since the last observed frame.
            It is also the error of the guess "the cube does not move".
        episodes: a name for each.
        skipped: how many episodes were left out because the gripper hardly moves.
        floor: the probe's errors on held-out real frames, in millimetres.
        films: episode name -> condition -> uint8 (T, H, W, 3), from the last observed frame on.
        own_success: (episodes, 2): the model's greatest success probability, and whether the real episode
            succeeded, within the steps that were imagined; nan where nobody recorded it.
    """

    horizons: tuple[int, ...]
    values: Mapping[str, Mapping[str, Array]]
    cube_moved_cm: Array
    episodes: tuple[str, ...]
    skipped: int
    floor: Mapping[str, float]
    films: Mapping[str, Mapping[str, Array]]
    own_success: Array

    def summary(self, condition: str, metric: str, horizon: int, where: Array | None = None) -> Interval:
        """Mean over episodes with its bootstrapped interval; ``where`` (episodes,) bool restricts them."""
        column = self._column(condition, metric, horizon)
        if metric == "psnr":
            column = np.minimum(column, PSNR_LIMIT)
        return mean(column if where is None else column[where])

    def action_following(self, horizon: int, metric: str = "gripper_cm") -> Interval:
        """Error under another episode's actions over error under the true ones; 1 means that actions are ignored."""
        return ratio(self._column("shuffled", metric, horizon), self._column("imagined", metric, horizon))

    def gain_db(self, over: str, horizon: int) -> Interval:
        """PSNR of the imagined frame minus that of the condition ``over``, episode by episode."""
        best, other = (np.minimum(self._column(c, "psnr", horizon), PSNR_LIMIT) for c in ("imagined", over))
        return mean(best - other)

    def cube_moved(self, horizon: int) -> Array:
        """(episodes,) bool: the cube is in view and has moved by at least `CUBE_MOVED_CM` at this horizon."""
        column = self.cube_moved_cm[:, self.horizons.index(horizon)]
        return (np.nan_to_num(column) >= CUBE_MOVED_CM) & np.isfinite(self._column("imagined", "cube_cm", horizon))

    def count(self, horizon: int) -> int:
        """Number of episodes that reach this horizon."""
        return int((~np.isnan(self._column("imagined", "psnr", horizon))).sum())

    def lines(self) -> list[list[str]]:
        """The table of all conditions: rows of text under `header`."""
        rows = [["episodes", "", *(str(self.count(h)) for h in self.horizons)]]

        def add(what: str, who: str, cell: Callable[[int], Interval], digits: int = 2) -> None:
            cells = [cell(h).format(digits) for h in self.horizons]
            if any(c != "–" for c in cells):
                rows.append([what, who, *cells])

        for metric, title, digits in _ROWS:
            for condition in CONDITIONS:
                add(title, condition, lambda h, c=condition, m=metric: self.summary(c, m, h), digits)  # type: ignore[misc]
        add("cube error, cm", "it does not move", lambda h: mean(self._still(h)))
        for condition in ("imagined", "shuffled", "copy"):
            add(
                f"… where it moved ≥ {CUBE_MOVED_CM:g} cm",
                condition,
                lambda h, c=condition: self.summary(c, "cube_cm", h, self.cube_moved(h)),  # type: ignore[misc]
            )
        add(
            f"… where it moved ≥ {CUBE_MOVED_CM:g} cm",
            "it does not move",
            lambda h: mean(self._still(h)[self.cube_moved(h)]),
        )
        for metric, title in (
            ("gripper_moved_cm", "left alone, the gripper moves, cm"),
            ("own_gripper_moved_cm", _OWN),
        ):
            add(title, "zero", lambda h, m=metric: self.summary("zero", m, h))  # type: ignore[misc]
        add("action following, gripper", "shuffled ÷ true", self.action_following)
        add("action following, pixels", "shuffled ÷ true", lambda h: self.action_following(h, "mse"))
        add("PSNR gain, dB", "over copy", lambda h: self.gain_db("copy", h))
        add("PSNR gain, dB", "over mean", lambda h: self.gain_db("mean", h))
        return rows

    @property
    def header(self) -> list[str]:
        return ["", "", *(f"horizon {h}" for h in self.horizons)]

    def notes(self) -> list[str]:
        """The conditions under which the table holds, as sentences."""
        used = f"{len(self.episodes)} episodes"
        if not np.isnan(self.values["imagined"]["own_gripper_cm"]).all():  # of a robot that says where its hand is
            used = f"{len(self.episodes)} moving episodes (gripper path ≥ {MOVING_PATH_CM:g} cm in {MOVING_DECISIONS} "
            used += f"decisions), {self.skipped} left out"
        floor = "; ".join(
            f"{name} median {self.floor[f'{name}_median_mm']:.1f} mm, mean {self.floor[f'{name}_mean_mm']:.1f} mm"
            for name in ("gripper", "cube")
            if f"{name}_median_mm" in self.floor
        )
        lines = [f"{used}. Means over episodes with 95 % bootstrap intervals."]
        known = self.own_success[~np.isnan(self.own_success[:, 1])]
        sure, real = known[:, 0] >= 0.5, known[:, 1] > 0.5
        if len(known):
            same = wilson(int((sure == real).sum()), len(real))
            lines.append(
                f"Success, by the model's own judgement (probability ≥ 0.5 at any step) under the true actions: "
                f"{sure.mean():.0%}, really {real.mean():.0%}; the same in {same.format(0, 100)} % of the episodes."
            )
        if floor:
            lines.append(f"Floor of the position reader on held-out real frames: {floor}.")
        return lines

    def table(self) -> str:
        """Everything as aligned text."""
        return "\n".join([format_table(self.header, self.lines()), "", *self.notes()])

    def to_dict(self) -> dict[str, Any]:
        """Means, intervals and every episode's values, as JSON values with nan where there is none."""
        finite = [h for h in self.horizons if self.count(h)]
        cells = {
            f"{condition}/{metric}": {str(h): vars(self.summary(condition, metric, h)) for h in finite}
            for condition in CONDITIONS
            for metric in METRICS
        }
        derived: dict[str, Callable[[int], Interval]] = {
            "action_following/gripper": self.action_following,
            "action_following/mse": lambda h: self.action_following(h, "mse"),
            "gain_db/copy": lambda h: self.gain_db("copy", h),
            "gain_db/mean": lambda h: self.gain_db("mean", h),
            "still/cube_cm": lambda h: mean(self._still(h)),
        }
        cells |= {name: {str(h): vars(cell(h)) for h in finite} for name, cell in derived.items()}
        per_episode = {c: {m: v.tolist() for m, v in metrics.items()} for c, metrics in self.values.items()}
        return {
            "horizons": list(self.horizons),
            "summary": cells,
            "episodes": list(self.episodes),
            "skipped": self.skipped,
            "floor": dict(self.floor),
            "values": per_episode,
            "cube_moved_cm": self.cube_moved_cm.tolist(),
            "own_success": self.own_success.tolist(),
        }

    def save(self, folder: str | Path) -> None:
        """Writes ``imagination.json``, ``report.html``, and a strip and a film of each kept episode."""
        folder = Path(folder)
        values = plain(self.to_dict() | {"machine": describe_machine()})
        write_text(folder / "imagination.json", json.dumps(values) + "\n")
        strips, videos = {}, {}
        for name, films in self.films.items():
            stem = re.sub(r"[^\w.-]+", "-", name)
            chosen = {key: films[key] for key in ("imagined", "real", "shuffled")}
            strips[name] = png_bytes(film_strip(chosen))
            write_bytes(folder / "videos" / f"{stem}.png", strips[name])
            videos[name] = f"videos/{stem}.mp4"
            write_mp4(folder / videos[name], side_by_side(chosen))
        tables = {"Under the same actions": (self.header, self.lines())}
        page = html_page("Imagination beside reality", tables, strips, self.notes(), videos)
        write_text(folder / "report.html", page)

    def _column(self, condition: str, metric: str, horizon: int) -> Array:
        return np.asarray(self.values[condition][metric][:, self.horizons.index(horizon)])

    def _still(self, horizon: int) -> Array:
        """The guess "the cube does not move", on the frames on which the model's cube error is taken."""
        column = self.cube_moved_cm[:, self.horizons.index(horizon)]
        return np.where(np.isfinite(self._column("imagined", "cube_cm", horizon)), column, math.nan)


_OWN = "… by the model's own reading"
_ROWS = (
    ("psnr", "PSNR, dB", 2),
    ("ssim", "SSIM", 3),
    ("gripper_cm", "gripper error, cm", 2),
    ("own_gripper_cm", _OWN, 2),
    ("opening_right", "gripper as open as really", 2),
    ("cube_cm", "cube error, cm", 2),
    ("cube_there", "cube seen by the reader", 2),
    ("cube_counted", "as many cubes as really", 2),
    ("red_ratio", "red pixels ÷ real", 2),
)
