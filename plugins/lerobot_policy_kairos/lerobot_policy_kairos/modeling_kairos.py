"""A Kairos world model as a LeRobot policy.

A policy folder holds LeRobot's files, and the model in a folder of its own, which Kairos itself can load as well:

    config.json                    LeRobot's configuration; its ``model`` and ``features`` name the two below
    features.json                  which LeRobot feature is what of the model's robot
    model/                         the Kairos model, as `WorldModel.save_pretrained` writes it
    policy_preprocessor.json, policy_postprocessor.json
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor

from kairos_env.datasets.lerobot.mapping import FeatureMap
from kairos_env.policies import WorldModelPolicy
from kairos_env.records import Observation
from kairos_env.world_model.model import WorldModel
from lerobot_policy_kairos.configuration_kairos import TRAINING, KairosConfig
from lerobot_policy_kairos.features import action_order, declare, fit_features, guess_features, read_observations

MODEL, FEATURES = "model", "features.json"


class KairosPolicy(PreTrainedPolicy):
    """Acts with the model's action expert; no video is imagined.

    `select_action` remembers: every observation enters the model with the action that led to it, for each robot of
    the batch. `predict_action_chunk` decides from one observation alone, so that it can be asked at any time.

    Args:
        config: what to load, see `KairosConfig`; its features are filled in.
        unused: what LeRobot hands to every policy (``dataset_stats``, ``dataset_meta``); the model has its own.

    Raises:
        SpecMismatch: features that do not fit the model's robot.
    """

    config_class = KairosConfig
    name = "kairos"
    config: KairosConfig

    def __init__(self, config: KairosConfig, **unused: Any) -> None:
        super().__init__(config)
        self.model = WorldModel.from_pretrained(config.model, device=config.device)
        if config.n_action_steps > self.model.chunk_length:
            raise ValueError(
                f"n_action_steps is {config.n_action_steps}, but the model proposes {self.model.chunk_length} actions"
            )
        given = {**(config.input_features or {}), **(config.output_features or {})}
        features = FeatureMap.load(config.features) if config.features else guess_features(self.model.spec, given)
        self.features = fit_features(features, self.model.spec)
        declared = declare(self.features, given)
        config.output_features = {ACTION: declared.pop(ACTION)}
        config.input_features = declared
        self._order = action_order(self.features)
        self._sequence = np.random.default_rng(config.seed)
        self.reset()
        logging.info("The robot of %s in LeRobot's features:\n%s", config.model, self.features.table())

    # acting ---------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets the episodes of all robots."""
        self._robots: list[WorldModelPolicy] = []  # one for each robot of the batch

    def select_action(self, batch: dict[str, Any], **unused: Any) -> Tensor:
        """The next action of each robot: (B, A) float32, physical units.

        Raises:
            ValueError: another number of robots than before, without a `reset`.
        """
        seen = self._read(batch)
        if not self._robots:
            for seed in self._sequence.integers(2**31, size=len(seen)).tolist():
                robot = WorldModelPolicy(self.model, steps=self.config.steps, execute=self.config.n_action_steps)
                robot.reset(seed)
                self._robots.append(robot)
        if len(self._robots) != len(seen):
            raise ValueError(
                f"a batch of {len(seen)} observations after one of {len(self._robots)}: reset() the policy when "
                "new episodes begin"
            )
        actions = np.stack(WorldModelPolicy.act_together(self._robots, seen, size=len(seen)))
        return torch.from_numpy(actions).to(self.config.device)[:, self._order]

    def predict_action_chunk(self, batch: dict[str, Any], **unused: Any) -> Tensor:
        """The next N actions of each robot, (B, N, A), from this observation alone."""
        seen = self._read(batch)
        state = self.model.observe(seen, seeds=[self.config.seed] * len(seen))
        return self.model.act(state, steps=self.config.steps)[..., self._order]

    def _read(self, batch: dict[str, Any]) -> list[Observation]:
        """What the robots see, each with an instruction."""
        seen = []
        for observation in read_observations(batch, self.features):
            text = self.config.instruction or observation.instruction
            if not text and len(self.model.tasks) > 1:
                raise ValueError(
                    f"what to do? The batch names no task, and the model knows {list(self.model.tasks.values())}: "
                    "give the environment or the dataset a task, or the policy an instruction (--policy.instruction)"
                )
            seen.append(dataclasses.replace(observation, instruction=text or self.model.spec.instruction))
        return seen

    # training -------------------------------------------------------------------------------------------------

    def get_optim_params(self) -> dict:
        """Raises NotImplementedError: LeRobot does not train this policy."""
        raise NotImplementedError(TRAINING)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict | None]:
        """Raises NotImplementedError: LeRobot does not train this policy."""
        raise NotImplementedError(TRAINING)

    # folders --------------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the folder that `from_pretrained` reads (LeRobot's ``save_pretrained`` comes here)."""
        if state_dict is not None:
            raise NotImplementedError(f"gathered weights cannot be saved: {TRAINING}")
        self.model.save_pretrained(save_directory / MODEL)
        self.features.save(save_directory / FEATURES)
        config = copy.copy(self.config)
        config.model, config.features, config.pretrained_path = MODEL, FEATURES, None
        config._save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **unused: Any,
    ) -> KairosPolicy:
        """Loads a policy folder, or a hub repository of one.

        Args:
            config: in place of the folder's; ``model`` and ``features`` may be changed to load others.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks a file.
            CheckpointError: its model is damaged.
        """
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(
                    str(pretrained_name_or_path),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                )
            )
        config = PreTrainedConfig.from_pretrained(folder) if config is None else config
        if not isinstance(config, KairosConfig):
            raise ValueError(f"{folder} holds a policy of type {config.type!r}, not 'kairos'")
        if config.model == MODEL:
            config.model = str(folder / MODEL)
        if config.features == FEATURES:
            config.features = str(folder / FEATURES)
        return cls(config).eval()
