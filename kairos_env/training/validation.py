"""Validation on held-out episodes: losses, and open-loop rollouts with film strips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kairos_env.media import film_strip, joined_views, write_png
from kairos_env.records import Array, Episode
from kairos_env.training.batches import POSITION, Clips
from kairos_env.training.config import TrainConfig
from kairos_env.training.losses import world_model_loss
from kairos_env.world_model.model import WorldModel

HORIZONS = (1, 5, 10, 20, 40)  # decisions
_STRIPS = 4  # at most


class Validation:
    """The held-out episodes of a run, prepared once.

    Args:
        model: encodes their pictures.
        episodes: with pictures.
        config: of the run.
        folder: for film strips, one folder each time.
    """

    def __init__(self, model: WorldModel, episodes: Sequence[Episode], config: TrainConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._clips = Clips(model, episodes, pixels=config.pixels)
        cameras = {camera.name for camera in model.spec.cameras}
        self._whole = [episode for episode in episodes if episode.acts and cameras <= set(episode.images)]

    def require_gate(self, model: WorldModel) -> None:
        """Raises ValueError if a gate waits for what no validation of these episodes gives."""
        if self._config.gate.metric:
            self._config.gate.require(rollout_metrics(model, self._whole) | self._losses(model))

    def measure(self, model: WorldModel, step: int) -> dict[str, float]:
        """Metrics for the log: those of `rollout_metrics`, and ``validation_<loss>`` of every loss that data teach."""
        return rollout_metrics(model, self._whole, self._folder / f"step_{step:06d}") | self._losses(model)

    @torch.no_grad()
    def _losses(self, model: WorldModel) -> dict[str, float]:
        """Losses of every mode, over the same clips and noise each time."""
        frames = self._config.loss.frames + model.chunk_length
        if max(self._clips.lengths, default=0) < frames:
            return {}
        generator = torch.Generator().manual_seed(0)
        config = self._config.loss
        batch = self._clips.sample(max(8, self._config.batch), frames, generator, config.tasks).to(model.device)
        _, losses = world_model_loss(model, batch, config, generator, horizon=config.frames)
        untaught = {*model.config.untrained, *(() if model.objects else ("object", "seen"))}
        return {f"validation_{name}": float(value) for name, value in losses.items() if name not in untaught}


def rollout_metrics(model: WorldModel, episodes: Sequence[Episode], folder: Path | None = None) -> dict[str, float]:
    """Open-loop rollouts from the first frames under the recorded actions.

    Args:
        episodes: with the pictures of all cameras.
        folder: for film strips of the first few, imagined above real; None writes none.

    Returns:
        ``psnr_<horizon>`` in dB, beside ``psnr_<horizon>_copy`` of the first frame; at the last decision
        ``proprio_error_last``, the root mean square over all fields in standard deviations, and, where the robot
        declares fields of kind ``position``, ``position_error_last``, their mean distance in their own unit; of every
        object that the episodes label ``<object>_cm_<horizon>``, its mean distance.
    """
    if not episodes:
        return {}
    steps = min(len(e) for e in episodes)
    state = model.observe([e.observation(0) for e in episodes])
    roll = model.imagine(state, np.stack([e.actions[:steps] for e in episodes]))
    cameras = [camera.name for camera in model.spec.cameras]
    imagined = joined_views(model.decode(roll.latents), cameras)
    real = np.stack([joined_views(e.images, cameras)[: steps + 1] for e in episodes])
    metrics = {}
    for horizon in (h for h in HORIZONS if h <= steps):
        metrics[f"psnr_{horizon}"] = psnr(imagined[:, horizon - 1], real[:, horizon])
        metrics[f"psnr_{horizon}_copy"] = psnr(real[:, 0], real[:, horizon])
    error = roll.proprio[:, -1].cpu().numpy() - np.stack([e.proprio[steps] for e in episodes])
    metrics["proprio_error_last"] = float(np.sqrt(np.square(error / np.array(model.statistics.proprio_std)).mean()))
    if model.spec.hand_fields:
        metrics["position_error_last"] = float(np.linalg.norm(error[:, model.spec.hand_fields], axis=-1).mean())
    for index, name in enumerate(model.objects):
        if all(name + POSITION in e.labels for e in episodes):
            where = np.stack([e.labels[name + POSITION][1 : steps + 1] for e in episodes])
            apart = 100 * np.linalg.norm(roll.objects[:, :, index].cpu().numpy() - where, axis=-1).mean(0)
            metrics |= {f"{name}_cm_{h}": float(apart[h - 1]) for h in HORIZONS if h <= steps}
    for i in range(min(_STRIPS, len(episodes)) if folder else 0):
        write_png(folder / f"{i}.png", film_strip({"imagined": imagined[i], "real": real[i, 1:]}))  # type: ignore[operator]
    return metrics


def psnr(a: Array, b: Array) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB: uint8 (B, H, W, 3) each."""
    error = np.square(a.astype(np.float32) - b).reshape(len(a), -1).mean(1)
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-6))).mean())
