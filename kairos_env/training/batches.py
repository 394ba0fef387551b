"""Random clips of recorded episodes, as the losses want them.

Everything a step draws comes from a generator that is seeded with (seed, step): a resumed run sees the
same clips as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kairos_env.records import Episode, RobotSpec

# An executed action this close to the expert's (in units of half the action range) continues the expert's plan.
ON_PLAN = 0.5


@dataclass(frozen=True)
class Batch:
    """B clips of F frames; normalised values.

    latents (B, F, C, h, w), proprio (B, F, P); lead (B, F, A), the action that led to each frame, and has_lead (B, F);
    chunk (B, F, N, A), the actions to propose at each frame, and chunk_mask (B, F, N);
    reward, success, outcome_mask (B, F); object_position (B, F, 3) in decimetres, object_mask (B, F);
    view_mask (B, w), proprio_mask (B, P), action_mask (B, A): 0 where a clip's robot has no such camera or field;
    texts: the instruction of each clip.
    """

    latents: Tensor
    proprio: Tensor
    lead: Tensor
    has_lead: Tensor
    chunk: Tensor
    chunk_mask: Tensor
    reward: Tensor
    success: Tensor
    outcome_mask: Tensor
    object_position: Tensor
    object_mask: Tensor
    view_mask: Tensor
    proprio_mask: Tensor
    action_mask: Tensor
    texts: list[str]


PER_TASK = ("chunk", "chunk_mask", "reward", "success", "outcome_mask")
PER_EPISODE = ("view_mask", "proprio_mask", "action_mask")


class Clips:
    """Episodes as flat arrays in memory, from which random clips are cut.

    With hindsight labels (the simulator knows reward, success and the expert's action of *every* task in
    every state) each clip can be read as an episode of any task. With the expert's actions of its own task alone, an
    episode is read as that task, and the expert's actions are learned in place of those that were executed. Without
    labels it is behaviour cloning of the task that was recorded.

    Args:
        episodes: each at least ``frames`` observations long.
        latents: per episode, for each camera of ``spec``, its normalised part (T + 1, C, h, w / cameras). They stay
            where they are, so that they may be memory maps; clips have them in float32, side by side.
        spec: of the model.
        tasks: task name -> instruction.
        chunk: N.
        normalise_actions, normalise_proprio: physical array -> normalised tensor.
        weights: how often each episode is drawn, relative to the others; None: all alike.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        latents: Sequence[Sequence[Tensor]],
        spec: RobotSpec,
        tasks: Mapping[str, str],
        chunk: int,
        normalise_actions: Callable[[np.ndarray], Tensor],
        normalise_proprio: Callable[[Tensor], Tensor],
        weights: Sequence[float] | None = None,
    ) -> None:
        names = list(tasks)
        self.columns: dict[str, list[Tensor]] = {}
        self.views = latents
        self.lengths: list[int] = []
        self.texts: list[list[str]] = []  # of each episode, the instructions under which it can be read
        self.odds = torch.ones(len(episodes)) if weights is None else torch.tensor(weights, dtype=torch.float32)
        for episode, views in zip(episodes, latents, strict=True):
            steps, labels = len(episode), episode.labels
            actions = normalise_actions(episode.actions)
            hindsight = set(names) <= set(episode.label_tasks) and "task_rewards" in labels
            own = not hindsight and "expert_actions" in labels and tuple(episode.label_tasks) == (episode.task,)
            order = [list(episode.label_tasks).index(name) for name in names] if hindsight else [0]
            texts = list(tasks.values()) if hindsight else [episode.instruction]
            if hindsight:
                reward = torch.as_tensor(np.asarray(labels["task_rewards"], np.float32))[:, order]
                success = torch.as_tensor(np.asarray(labels["task_success"], np.float32))[:, order]
            else:
                outcome = np.stack([episode.rewards, episode.success], 1).astype(np.float32)
                reward, success = torch.from_numpy(outcome).split(1, 1)
            if hindsight or own:
                expert = normalise_actions(np.asarray(labels["expert_actions"], np.float32)[:, order])
            else:
                expert = torch.cat([actions, actions[-1:]]).unsqueeze(1)
            objects = torch.as_tensor(np.asarray(labels.get("object_position", np.zeros((steps + 1, 3))), np.float32))
            # position j of a chunk is right only while the actions before it followed the plan
            on_plan = ((actions.unsqueeze(1) - expert[:-1]).abs().amax(-1) < ON_PLAN).float()  # (T, tasks)
            valid = torch.zeros(steps + 1, len(texts), chunk)
            proposal = torch.zeros(steps + 1, len(texts), chunk, actions.shape[-1])
            for j in range(chunk):
                reach = steps + 1 - j if hindsight or own else steps - j
                if reach <= 0:
                    continue
                proposal[:reach, :, j] = expert[j : j + reach]
                valid[:reach, :, j] = 1.0
                for i in range(j):
                    valid[:reach, :, j] *= on_plan[i : i + reach]
            nothing = torch.zeros(1, len(texts))
            there = [
                torch.full(v.shape[-1:], float(c.name in episode.cameras))
                for c, v in zip(spec.cameras, views, strict=True)
            ]
            columns = {
                "proprio": normalise_proprio(torch.as_tensor(episode.proprio, dtype=torch.float32)),
                "lead": torch.cat([torch.zeros_like(actions[:1]), actions]),
                "has_lead": torch.cat([torch.zeros(1), torch.ones(steps)]),
                "chunk": proposal,
                "chunk_mask": valid,
                "reward": torch.cat([nothing, reward]),
                "success": torch.cat([nothing, success]),
                "outcome_mask": torch.cat([nothing, torch.full((steps, len(texts)), float(episode.outcome_known))]),
                "object_position": 10 * objects,
                "object_mask": torch.full((steps + 1,), float("object_position" in labels)),
                "view_mask": torch.cat(there),
                "proprio_mask": _mask(episode.proprio_mask, spec.proprio_dim),
                "action_mask": _mask(episode.action_mask, spec.action_dim),
            }
            for key, value in columns.items():
                self.columns.setdefault(key, []).append(value)
            self.lengths.append(steps + 1)
            self.texts.append(texts)

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, batch: int, frames: int, generator: torch.Generator) -> Batch:
        """``batch`` random clips of ``frames`` frames, each read as a random task that its labels allow.

        Raises:
            ValueError: no episode is long enough.
        """
        long_enough = [i for i, n in enumerate(self.lengths) if n >= frames and self.odds[i] > 0]
        if not long_enough:
            raise ValueError(
                f"training clips have {frames} frames, but the longest of {len(self)} episodes has "
                f"{max(self.lengths, default=0)} observations: record longer ones or set a smaller clip length"
            )

        def draw(high: int) -> int:
            return int(torch.randint(high, (1,), generator=generator))

        rows: dict[str, list[Tensor]] = {}
        texts = []
        odds = self.odds[long_enough]
        alike = bool((odds == odds[0]).all())
        for _ in range(batch):
            nth = draw(len(odds)) if alike else int(torch.multinomial(odds, 1, generator=generator))
            index = long_enough[nth]
            start = draw(self.lengths[index] - frames + 1)
            task = draw(len(self.texts[index]))
            texts.append(self.texts[index][task])
            clip = torch.cat([view[start : start + frames].float() for view in self.views[index]], -1)
            rows.setdefault("latents", []).append(clip)
            for key, column in self.columns.items():
                clip = column[index] if key in PER_EPISODE else column[index][start : start + frames]
                rows.setdefault(key, []).append(clip[:, task] if key in PER_TASK else clip)
            # a clip starts without history, so its first frame has no lead
            rows["has_lead"][-1] = torch.cat([torch.zeros(1), rows["has_lead"][-1][1:]])
        return Batch(**{key: torch.stack(value) for key, value in rows.items()}, texts=texts)  # type: ignore[arg-type]


def _mask(mask: np.ndarray | None, size: int) -> Tensor:
    return torch.ones(size) if mask is None else torch.as_tensor(np.asarray(mask), dtype=torch.float32)
