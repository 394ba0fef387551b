"""Random clips of recorded episodes, as the losses want them.

Everything a step draws comes from a generator that is seeded with (seed, step): a resumed run sees the
same clips as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kairos_env.records import Array, Episode
from kairos_env.training.pixels import PixelWeights, cell_weights
from kairos_env.world_model.features import FAR
from kairos_env.world_model.model import WorldModel

# An executed action this close to the expert's (in units of half the action range) continues the expert's plan.
ON_PLAN = 0.5
POSITION = "_position"  # a label of that ending, (T + 1, 3) in metres, is the place of the object that it names


@dataclass(frozen=True)
class Batch:
    """B clips of F frames, each read as T tasks; normalised values.

    latents (B, F, C, h, w); cells (B, F, h, w), how much each counts, mean 1; proprio (B, F, P);
    lead (B, F, A), the action that led to each frame, and has_lead (B, F);
    chunk (B, F, T, N, A), the actions to propose at each frame, and chunk_mask (B, F, T, N);
    reward, success, outcome_mask (B, F, T); objects (B, F, O, 3) in decimetres, object_mask (B, F, O);
    view_mask (B, w), proprio_mask (B, P), action_mask (B, A): 0 where a clip's robot has no such camera or field;
    texts: the T instructions of each clip.
    """

    latents: Tensor
    cells: Tensor
    proprio: Tensor
    lead: Tensor
    has_lead: Tensor
    chunk: Tensor
    chunk_mask: Tensor
    reward: Tensor
    success: Tensor
    outcome_mask: Tensor
    objects: Tensor
    object_mask: Tensor
    view_mask: Tensor
    proprio_mask: Tensor
    action_mask: Tensor
    texts: list[list[str]]

    def part(self, start: int, stop: int | None = None) -> Batch:
        """Frames ``start`` to ``stop`` of every clip."""
        kept = {name: getattr(self, name) for name in (*PER_EPISODE, "texts")}
        return Batch(**kept, **{name: getattr(self, name)[:, start:stop] for name in PER_FRAME})

    def to(self, device: torch.device) -> Batch:
        """The same clips on another device."""
        moved = {name: getattr(self, name).to(device) for name in (*PER_EPISODE, *PER_FRAME)}
        return Batch(**moved, texts=self.texts)


PER_EPISODE = ("view_mask", "proprio_mask", "action_mask")
PER_TASK = ("chunk", "chunk_mask", "reward", "success", "outcome_mask")
PER_FRAME = tuple(f.name for f in dataclasses.fields(Batch) if f.name not in (*PER_EPISODE, "texts"))


class Clips:
    """Episodes as flat arrays in memory, from which random clips are cut.

    With hindsight labels (the simulator knows reward, success and the expert's action of *every* task in
    every state) each clip can be read as an episode of any task of the model. With the expert's actions of its own
    task alone, an episode is read as that task, and the expert's actions are learned in place of those that were
    executed. Without labels it is behaviour cloning of the task that was recorded.

    Args:
        model: knows the robot, the tasks and how values are normalised; pictures are encoded by it, once.
        episodes: with pictures, or with latents that this model made. Latents stay where they are, so that they may be
            memory maps of a `LatentCache`.
        weights: how often each episode is drawn, relative to the others; None: all alike.
        pixels: what counts in a picture; None, and where there are latents in place of pictures: all cells alike.

    Attributes:
        lengths: observations of each episode.

    Raises:
        ValueError: latents of another model, or a label of the wrong shape.
    """

    def __init__(
        self,
        model: WorldModel,
        episodes: Sequence[Episode],
        weights: Sequence[float] | None = None,
        pixels: PixelWeights | None = None,
    ) -> None:
        check_encoder(model, episodes)
        self.lengths = [len(episode) + 1 for episode in episodes]
        self._odds = torch.ones(len(episodes)) if weights is None else torch.tensor(weights, dtype=torch.float32)
        self._begins = torch.tensor([0, *self.lengths]).cumsum(0)
        self._views = [camera_latents(model, episode) for episode in episodes]
        read = [_columns(model, episode) for episode in episodes]
        self._texts = [texts for _, texts in read]
        most = max(map(len, self._texts), default=0)
        parts = [{k: _with_tasks(v, most) if k in PER_TASK else v for k, v in columns.items()} for columns, _ in read]
        self._objects = model.objects
        self._columns = {key: torch.cat([part[key] for part in parts]) for key in (parts[0] if parts else ())}
        self._cells = _cells(model, episodes, pixels)

    def __len__(self) -> int:
        return len(self.lengths)

    def untrained_readouts(self) -> dict[str, str]:
        """Read-outs that no episode teaches (reward, success, names of objects), with a sentence on each."""
        found = {}
        if not self._columns["outcome_mask"].any():
            why = "no episode says its outcome: it teaches neither reward nor success"
            found = {"reward": why, "success": why}
        for name, known in zip(self._objects, self._columns["object_mask"].any(0).tolist(), strict=True):
            if not known:
                found[name] = f"no episode has the label {name + POSITION!r}: nothing teaches where {name} is"
        if not self._objects:
            why = f"no episode has a label such as 'object{POSITION}' (metres): the model reads no objects"
            found["objects"] = why
        return found

    def sample(self, batch: int, frames: int, generator: torch.Generator, tasks: int = 1) -> Batch:
        """``batch`` random clips of ``frames`` frames, each read as ``tasks`` random ones that its labels allow.

        Clips that can be read as fewer tasks than others repeat them; no more are read than one of them can be.

        Raises:
            ValueError: no episode is long enough.
        """
        long_enough = [i for i, n in enumerate(self.lengths) if n >= frames and self._odds[i] > 0]
        if not long_enough:
            raise ValueError(
                f"training clips have {frames} frames, but the longest of {len(self)} episodes has "
                f"{max(self.lengths, default=0)} observations: record longer ones or set a smaller clip length"
            )

        def draw(high: int) -> int:
            return int(torch.randint(high, (1,), generator=generator))

        odds, tasks = self._odds[long_enough], min(tasks, max(map(len, self._texts)))
        alike = bool((odds == odds[0]).all())
        clips, chosen = [], []  # number of the episode, first frame; tasks
        for _ in range(batch):
            nth = draw(len(odds)) if alike else int(torch.multinomial(odds, 1, generator=generator))
            number = long_enough[nth]
            clips.append((number, draw(self.lengths[number] - frames + 1)))
            order = torch.randperm(len(self._texts[number]), generator=generator).tolist()
            chosen.append([order[i % len(order)] for i in range(tasks)])
        episode, start = torch.tensor(clips).T
        task = torch.tensor(chosen)  # (B, T)
        rows = (self._begins[episode] + start).unsqueeze(1) + torch.arange(frames)  # (B, F)
        parts = [(number, slice(first, first + frames)) for number, first in clips]
        drawn = {
            "latents": torch.stack([self._latents(i, part) for i, part in parts]),
            "cells": torch.stack([self._cells[i][part].float() for i, part in parts]),
        }
        for key, column in self._columns.items():
            if key in PER_EPISODE:
                drawn[key] = column[episode]
            else:
                drawn[key] = column[rows.unsqueeze(2), task.unsqueeze(1)] if key in PER_TASK else column[rows]
        drawn["has_lead"][:, 0] = 0  # a clip starts without history
        texts = [[self._texts[i][which] for which in those] for (i, _), those in zip(clips, chosen, strict=True)]
        return Batch(**drawn, texts=texts)

    def _latents(self, index: int, part: slice) -> Tensor:
        return torch.cat([view[part].float() for view in self._views[index]], -1)


def check_encoder(model: WorldModel, episodes: Sequence[Episode], name: str = "this model") -> None:
    """Raises ValueError if episodes hold latents that another model made."""
    makers = {episode.encoder for episode in episodes if episode.latents and episode.encoder}
    if makers - {model.encoder_sha256}:
        theirs = ", ".join(sorted(maker[:12] for maker in makers))
        raise ValueError(
            f"the cached latents were made by the encoder {theirs}, but that of {name} is {model.encoder_sha256[:12]} "
            f"(sha256): encode again with `kairos data encode --model {name}`"
        )


@torch.no_grad()
def encode_pictures(model: WorldModel, pictures: Array, at_once: int = 64) -> Tensor:
    """One camera's uint8 (T, H, W, 3) -> its normalised latents (T, C, h, w) on the CPU, so many pictures at a time."""
    parts = torch.from_numpy(np.ascontiguousarray(pictures)).split(at_once)
    return torch.cat([model.encode_view(part.to(model.device)).cpu() for part in parts])


def camera_latents(model: WorldModel, episode: Episode) -> list[Tensor]:
    """Each camera's normalised latents (T + 1, C, h, w) of an episode; zero where a camera is missing."""
    views = []
    for camera in model.spec.cameras:
        if camera.name in episode.latents:
            views.append(torch.from_numpy(episode.latents[camera.name]))
        elif camera.name in episode.images:
            views.append(encode_pictures(model, episode.images[camera.name]))
        else:
            width = model.latent_shape[2] // len(model.spec.cameras)
            views.append(torch.zeros(1, *model.latent_shape[:2], width).expand(len(episode) + 1, -1, -1, -1))
    return views


def _cells(model: WorldModel, episodes: Sequence[Episode], pixels: PixelWeights | None) -> list[Tensor]:
    """How much each cell of every observation counts: float16 (T + 1, h, w) of each episode, cameras side by side."""
    height, width = model.latent_shape[1], model.latent_shape[2] // len(model.spec.cameras)
    alike = torch.ones((), dtype=torch.float16)
    views = []
    for camera in model.spec.cameras:
        view = [alike.expand(len(episode) + 1, height, width) for episode in episodes]
        shown = [i for i, e in enumerate(episodes) if pixels and camera.name in e.images and not e.latents]
        if pixels and shown:
            weights = cell_weights([episodes[i].images[camera.name] for i in shown], (height, width), pixels)
            for i, found in zip(shown, weights, strict=True):
                view[i] = found
        views.append(view)
    return [torch.cat(parts, -1) for parts in zip(*views, strict=True)]


def _columns(model: WorldModel, episode: Episode) -> tuple[dict[str, Tensor], list[str]]:
    """A whole episode as fields of a `Batch`, and the instructions of the tasks under which it can be read.

    `PER_EPISODE` (1, ...), all others (T + 1, ...), `PER_TASK` (T + 1, tasks, ...).
    """
    spec, steps, labels = model.spec, len(episode), episode.labels
    names, known = list(model.tasks), list(episode.label_tasks)
    actions = model.normalise_actions(episode.actions).cpu()
    hindsight = set(names) <= set(known) and "task_rewards" in labels
    own = not hindsight and "expert_actions" in labels and known == [episode.task]
    order = [known.index(name) for name in names] if hindsight else [0]
    texts = list(model.tasks.values()) if hindsight else [episode.instruction]
    if hindsight:
        reward, success = (torch.from_numpy(_label(labels, k)[:, order]) for k in ("task_rewards", "task_success"))
    else:
        outcome = np.stack([episode.rewards, episode.success], 1).astype(np.float32)
        reward, success = torch.from_numpy(outcome).split(1, 1)
    if hindsight or own:
        expert = model.normalise_actions(_label(labels, "expert_actions")[:, order]).cpu()
        chunk, chunk_mask = _plans(expert, actions, model.chunk_length, steps + 1)
    else:
        executed = torch.cat([actions, actions[-1:]]).unsqueeze(1)
        chunk, chunk_mask = _plans(executed, actions, model.chunk_length, steps)
    proprio = torch.as_tensor(episode.proprio, dtype=torch.float32)
    nothing = torch.zeros(1, len(texts))
    there = [float(camera.name in episode.cameras) for camera in spec.cameras]
    columns = {
        "proprio": model.normalise_proprio(proprio),
        "lead": torch.cat([torch.zeros_like(actions[:1]), actions]),
        "has_lead": torch.cat([torch.zeros(1), torch.full((steps,), float(episode.acts))]),
        "chunk": chunk,
        "chunk_mask": chunk_mask * float(episode.acts),
        "reward": torch.cat([nothing, reward]),
        "success": torch.cat([nothing, success]),
        "outcome_mask": torch.cat([nothing, torch.full((steps, len(texts)), float(episode.outcome_known))]),
        "objects": torch.stack([_position(episode, name) for name in model.objects], 1) / FAR
        if model.objects
        else torch.zeros(steps + 1, 0, 3),
        "object_mask": torch.tensor([float(n + POSITION in labels) for n in model.objects]).expand(steps + 1, -1),
        "view_mask": torch.tensor([there]).repeat_interleave(model.latent_shape[2] // len(there), 1),
        "proprio_mask": _mask(episode.proprio_mask, spec.proprio_dim),
        "action_mask": _mask(episode.action_mask, spec.action_dim),
    }
    return columns, texts


def _plans(expert: Tensor, executed: Tensor, chunk: int, known: int) -> tuple[Tensor, Tensor]:
    """Action chunks to propose at each frame, and which positions of them count.

    Position j of a chunk is right only while the actions before it followed the plan.

    Args:
        expert: (T + 1, tasks, A), what the expert of each task does at each frame.
        executed: (T, A).
        chunk: N.
        known: the first so many frames have an action of the expert.

    Returns:
        (T + 1, tasks, N, A), (T + 1, tasks, N).
    """
    frames, tasks, width = expert.shape
    on_plan = ((executed.unsqueeze(1) - expert[:-1]).abs().amax(-1) < ON_PLAN).float()  # (T, tasks)
    valid = torch.zeros(frames, tasks, chunk)
    proposal = torch.zeros(frames, tasks, chunk, width)
    for j in range(min(chunk, known)):
        reach = known - j
        proposal[:reach, :, j] = expert[j : j + reach]
        valid[:reach, :, j] = 1.0
        for i in range(j):
            valid[:reach, :, j] *= on_plan[i : i + reach]
    return proposal, valid


def _label(labels: Mapping[str, Array], key: str) -> Array:
    return np.asarray(labels[key], np.float32)


def object_names(episodes: Iterable[Episode]) -> tuple[str, ...]:
    """Names of the objects whose positions are labels of any episode, ``object`` first."""
    names = {key.removesuffix(POSITION) for e in episodes for key in e.labels if key.endswith(POSITION)}
    return tuple(sorted(names, key=lambda name: (name != "object", name)))


def _position(episode: Episode, name: str) -> Tensor:
    """(T + 1, 3) in metres; zero where nobody recorded it."""
    shape = (len(episode) + 1, 3)
    where = np.asarray(episode.labels.get(name + POSITION, np.zeros(shape)), np.float32)
    if where.shape != shape:
        raise ValueError(f"the label {name + POSITION!r} is {where.shape}, but positions are {shape}, in metres")
    return torch.from_numpy(where)


def _mask(mask: Array | None, size: int) -> Tensor:
    return torch.ones(1, size) if mask is None else torch.as_tensor(np.asarray(mask)[None], dtype=torch.float32)


def _with_tasks(column: Tensor, most: int) -> Tensor:
    """(T + 1, tasks, ...) with zeros for tasks that only other episodes have."""
    return torch.cat([column, column.new_zeros(len(column), most - column.shape[1], *column.shape[2:])], 1)
