"""Imagined episodes: the one place where a world model becomes an environment.

`Imagination` starts, steps and judges B episodes at once. `WorldModelEnv` is it with B = 1;
`WorldModelVectorEnv` adds the autoreset. So both have the same starts, rewards and ends.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from kairos_env.env.episodes import EpisodeState, Outcome, model_fingerprint
from kairos_env.env.initial_observations import InitialObservations, Start
from kairos_env.env.instructions import UnknownInstructions, Wish, check_task, choose_instruction
from kairos_env.env.readings import read
from kairos_env.env.reward import RewardChoice, make_reward, reward_form, unknown_reward
from kairos_env.env.settings import Horizon, ImaginationOptions, check_count, check_horizon, check_judgement
from kairos_env.env.trust import Trust, horizon_of
from kairos_env.env.view import ObservationForm, View
from kairos_env.records import Array, Observation
from kairos_env.sims.reward import step_reward
from kairos_env.sims.simulator import check_names
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import WorldState

logger = logging.getLogger(__name__)

RESET_OPTIONS = ("observation", "instruction", "task", "start", "initial_state")
RENDER_HEIGHT = 256  # pixels; what a model sees is often too small to look at


class Imagination:
    """Starts, steps and judges imagined episodes, B at once. Holds settings, no episode.

    Args:
        model: bundled name, folder, hub id, or a loaded `WorldModel`.
        task: one of the model's tasks; None takes the start's own instruction, else the model's default.
        start: where episodes begin, see `InitialObservations`: ``"dataset"``, the id of a simulator or the simulator
            itself, an `Observation` or several.
        reward: what a decision earns: ``"shaped"``, ``"sparse"`` or ``"dense"`` by the model's own reward and
            imagined success (see `kairos_env.sims.reward`); a function ``StepOutput -> (B,)`` or a goal image, which
            are taken as they are.
        steps: denoising steps of one imagined decision; None is the model's default.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        max_episode_steps: decisions until an episode is truncated; None, or -1 as in Gymnasium, never truncates by
            time.
        observation: ``"pixels"`` (the robot's own observation space), ``"latent"`` or ``"features"``, see `View`.
        success_threshold: imagined success probability from which the task counts as solved; None never.
        success_ends: an episode terminates once the task is solved. False goes on, and decisions cost nothing for as
            long as it stays solved: an agent that practises so learns to be solved beyond doubt, where one that is
            let off at the first claim stops where the claim is least sure.
        uncertainty_limit: uncertainty above which the episode is truncated, because what follows is not to be
            trusted, in metres (of models that expect no errors of positions in standard deviations of the latent);
            None never.
        horizon: decisions after which an episode is truncated because imagination is no longer to be believed:
            ``"measured"`` are those that `kairos eval calibration` found for its task and the model's folder states
            (nothing where none are stated), None never.
        unknown_instructions: whether to ``"refuse"`` or to ``"accept"`` a reset option ``instruction`` that the model
            was never trained on.

    Raises:
        ValueError: a setting that is not legal, with what is.
        SpecMismatch: the start's robot is not the model's.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | WorldModel = "kairos-tiny",
        *,
        task: str | None = None,
        start: Start = "dataset",
        reward: RewardChoice = "shaped",
        steps: int | None = None,
        device: str = "auto",
        max_episode_steps: int | None = None,
        observation: ObservationForm = "pixels",
        success_threshold: float | None = 0.5,
        success_ends: bool = True,
        uncertainty_limit: float | None = None,
        horizon: Horizon = "measured",
        unknown_instructions: UnknownInstructions = "refuse",
    ) -> None:
        check_count("steps", steps)
        check_judgement(success_threshold, success_ends, uncertainty_limit, unknown_instructions)
        check_horizon(horizon)
        self.model = load_model(model, device)
        self.fingerprint = model_fingerprint(self.model)
        self.spec = self.model.imagined_spec
        if not self.model.follows_actions:
            logger.warning(
                "%s has published weights: what they imagine does not follow actions until they are fine-tuned, "
                "which kairos train cannot do yet; info['follows_actions'] says so too",
                self.model.config.preset,
            )
        self.task = check_task(task, self.model.tasks)
        self.initial_observations = InitialObservations(start, self.model)
        self.reward, self.reward_form = make_reward(reward, self.model), reward_form(reward)
        if self.reward is unknown_reward:
            self.reward_form = "dense"
            logger.warning(
                "no episode taught %s rewards and success: every decision earns 0 and none solves the task; give "
                "reward=function of a step, or a goal image",
                self.model.spec.name,
            )
        self.steps = steps
        self.limit_episodes(max_episode_steps)
        self.success_threshold = None if "success" in self.model.untrained else success_threshold
        self.success_ends = success_ends
        self.uncertainty_limit, self.horizon = uncertainty_limit, horizon
        self.unknown_instructions: UnknownInstructions = unknown_instructions
        self.trust = Trust(self.model)
        self.view = View(self.model, observation)
        self.observation_space: gym.spaces.Dict = self.view.space
        self.action_space = self.spec.action_space

    def limit_episodes(self, max_episode_steps: int | None) -> None:
        """Truncates episodes after so many decisions; None, or Gymnasium's -1, never does."""
        self.max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
        check_count("max_episode_steps", self.max_episode_steps)

    # Starting

    def begin(self, seeds: Sequence[int], options: Sequence[Mapping[str, Any]]) -> Outcome:
        """Starts one episode for each seed.

        Args:
            seeds: episode seeds; one picks the start and the model's noise.
            options: the reset options of each episode, see `WorldModelEnv.reset`.
        """
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"the seed of an episode is {seed}; use 0 ... 2**63 - 1")
        begun = [self._first_observation(seed, option) for seed, option in zip(seeds, options, strict=True)]
        observations, wishes = [b[0] for b in begun], [b[1] for b in begun]
        state = self.model.observe(observations, seeds=list(seeds))
        count = len(observations)
        episodes = EpisodeState(
            state,
            steps=np.zeros(count, np.int64),
            seeds=np.array(seeds, np.int64),
            tasks=np.array([wish.task for wish in wishes], object),
            instructions=np.array([wish.instruction for wish in wishes], object),
            known=np.array([wish.known for wish in wishes], object),
            strangeness=self._strangeness(state, begun),
            finished=np.zeros(count, bool),
            model=self.fingerprint,
        )
        if self.view.form != "pixels":
            return self.resume(episodes)
        # The first observation is the real one, not its reconstruction.
        real = {c.key: np.stack([o.images[c.name] for o in observations]) for c in self.spec.cameras}
        real["proprio"] = self.view.clip(np.stack([o.proprio for o in observations]))
        return self.resume(episodes, real)

    def resume(self, episodes: EpisodeState, observation: dict[str, Array] | None = None) -> Outcome:
        """The result of a reset to ``episodes``; the observation is imagined unless it is given."""
        state, count = episodes.world_state, len(episodes)
        success = state.success.double().tolist()
        uncertainty = self.trust.uncertainty(state, episodes.strangeness)
        objects, errors = (x.float().cpu().numpy() for x in (state.objects, state.errors))
        if observation is None:
            observation = self.view.observe(state.latent, state.proprio, state.objects, state.before)
        return Outcome(
            episodes,
            observation,
            reward=np.zeros(count),
            terminated=episodes.finished.copy(),
            truncated=np.zeros(count, bool),
            info=self._info(episodes, success, uncertainty, objects, errors, [""] * count),
        )

    def _first_observation(self, seed: int, options: Mapping[str, Any]) -> tuple[Observation, Wish, bool]:
        """The observation from which an episode starts, what it is for, and whether it ships with the model."""
        if not isinstance(options, Mapping):
            raise ValueError(f"options is {options!r}; reset takes a dict of {', '.join(RESET_OPTIONS)}")
        check_names(options, RESET_OPTIONS, "reset option")
        task = check_task(options.get("task"), self.model.tasks) or self.task
        given = options.get("observation")
        if given is None:
            observation = self.initial_observations.draw(seed, task, options)
        else:
            if options.get("start") is not None or options.get("initial_state") is not None:
                raise ValueError("reset got both an observation and a start; pass one of them")
            observation = given if isinstance(given, Observation) else Observation.from_gym(given)
            observation.check(self.spec)
        words = options.get("instruction")
        wish = choose_instruction(self.model, words, task, observation.instruction, self.unknown_instructions)
        if options.get("task") and wish.task and wish.task != options["task"]:
            raise ValueError(
                f"reset got the task {options['task']!r} and the instruction {words!r}, which is of {wish.task!r}; "
                "pass one of them"
            )
        own = given is None and self.initial_observations.shipped
        return dataclasses.replace(observation, instruction=wish.instruction), wish, own

    def _strangeness(self, state: WorldState, begun: Sequence[tuple[Observation, Wish, bool]]) -> Array:
        """See `Familiarity`; observations that ship with the model are what others are compared with."""
        found, others = np.ones(len(begun)), [i for i, (_, _, own) in enumerate(begun) if not own]
        if others:
            found[others] = self.trust.familiarity.strangeness([begun[i][0] for i in others], state.latent[others])
        return found

    # Stepping

    def step(self, episodes: EpisodeState, actions: Any) -> Outcome:
        """Imagines one decision of every episode, in one batched model step.

        Args:
            episodes: the state from which they go on.
            actions: (B, A), physical units; clipped to the robot's range.

        Raises:
            ValueError: wrong shape, not numeric, or not finite.
        """
        self._check_shape(actions, len(episodes))
        out = self.model.step(episodes.world_state, actions, steps=self.steps)
        reward = torch.as_tensor(self.reward(out), dtype=torch.float32, device=out.latent.device)
        if reward.shape != (len(episodes),):
            raise ValueError(f"the reward function returned shape {tuple(reward.shape)}, expected {(len(episodes),)}")
        told = read(out, reward)
        steps, success = episodes.steps + 1, told.success.tolist()
        uncertainty = (told.uncertainty * episodes.strangeness).tolist()
        # Row by row: numbers are quicker than arrays of one.
        rows = zip(steps.tolist(), episodes.tasks, success, uncertainty, told.broken, strict=True)
        judged = [self._judge(*row) for row in rows]
        earned = zip(told.reward.tolist(), judged, strict=True)
        rewards = np.array([step_reward(dense, solved, self.reward_form) for dense, (solved, _) in earned])
        terminated = np.array([solved and self.success_ends for solved, _ in judged])
        truncated = np.array([bool(reason) for _, reason in judged])
        after = episodes.after(out.state, steps, terminated | truncated)
        latent, proprio, objects = out.latent, out.proprio, out.objects
        if any(told.broken):  # what is returned still lies in its space; info says why the episode ends
            latent, proprio, objects = (x.nan_to_num(0, 0, 0) for x in (latent, proprio, objects))
        seen = self.view.observe(latent, proprio, objects, out.state.before)
        info = self._info(after, success, uncertainty, told.objects, told.errors, [reason for _, reason in judged])
        return Outcome(after, seen, rewards, terminated, truncated, info)

    def check_actions(self, actions: Any, count: int) -> None:
        """Raises ValueError unless ``actions`` could be stepped: (count, A), numeric and finite."""
        self.spec.check_action(actions)
        self._check_shape(actions, count)

    def _check_shape(self, actions: Any, count: int) -> None:
        # The model checks the values itself; doing so twice would cost more than the rest of the bookkeeping.
        if np.shape(actions) != (count, self.spec.action_dim):
            self.spec.check_action(actions)  # says more, if it is about the robot
            raise ValueError(f"actions have shape {np.shape(actions)}, expected {(count, self.spec.action_dim)}")

    def _judge(self, step: int, task: str, success: float, uncertainty: float, broken: bool) -> tuple[bool, str]:
        """Whether the task is solved, and why the episode is cut off; empty if it is not."""
        if broken:
            return False, "non_finite"
        if self._distrusted(uncertainty):
            return False, "uncertainty"
        solved = self._solved(success, uncertainty)
        if solved and self.success_ends:
            return True, ""
        if step >= self._horizon(task):
            return solved, "horizon"
        late = self.max_episode_steps is not None and step >= self.max_episode_steps
        return solved, "time_limit" if late else ""

    def _horizon(self, task: str) -> float:
        if self.horizon == "measured":
            return horizon_of(task, self.model.horizons)
        return np.inf if self.horizon is None else self.horizon

    def _distrusted(self, uncertainty: float) -> bool:
        return self.uncertainty_limit is not None and uncertainty > self.uncertainty_limit

    def _solved(self, success: float, uncertainty: float) -> bool:
        """A success that cannot be trusted is none."""
        return (
            self.success_threshold is not None
            and success >= self.success_threshold
            and not self._distrusted(uncertainty)
        )

    def _info(
        self,
        episodes: EpisodeState,
        success: list[float],
        uncertainty: list[float],
        objects: Array,
        errors: Array,
        reason: list[str],
    ) -> dict[str, Array]:
        told: dict[str, Array] = {"objects": objects.copy()} if self.model.objects else {}
        if not self.model.follows_actions:
            told["follows_actions"] = np.zeros(len(episodes), bool)
        told |= self.trust.columns(uncertainty, episodes.strangeness)
        if self.model.tasks:
            told["known_instruction"] = episodes.known.astype(bool)
        told["errors"] = errors.copy()
        told["success"] = np.array([self._solved(*row) for row in zip(success, uncertainty, strict=True)])
        if "success" not in self.model.untrained:
            told["success_probability"] = np.array(success)
        told["imagined_step"] = episodes.steps.copy()
        told["task"] = episodes.tasks.copy()
        told["instruction"] = episodes.instructions.copy()
        told["seed"] = episodes.seeds.copy()
        told["truncated_reason"] = np.array(reason, object)
        return told

    # Looking

    def render(self, episodes: EpisodeState) -> Array:
        """Uint8 (B, s*H, s*W, 3): every episode's newest frame, cameras of one height side by side.

        The whole number s enlarges small frames to at most `RENDER_HEIGHT`, pixel by pixel.
        """
        state = episodes.world_state
        frames = self.model.decode(state.latent, state.before)
        first = self.spec.cameras[0]
        views = [frames[camera.name] for camera in self.spec.cameras if camera.height == first.height]
        strip = np.concatenate(views, axis=2)  # (B, H, W, 3)
        scale = max(1, RENDER_HEIGHT // first.height)
        return strip.repeat(scale, axis=1).repeat(scale, axis=2)

    def close(self) -> None:
        """Frees the simulator that gave starts, if there was one. The model is the caller's."""
        self.initial_observations.close()


def load_model(model: str | os.PathLike[str] | WorldModel, device: str = "auto") -> WorldModel:
    """``model`` itself if it is one, else the pretrained model of that name, folder or hub id.

    Raises:
        ValueError: a loaded model that lives on another device than ``device``.
    """
    if not isinstance(model, str | os.PathLike):
        if not hasattr(model, "imagined_spec"):
            kind = type(model).__name__
            raise TypeError(f"model is of type {kind}; use a bundled name, a folder, a hub id, or a WorldModel")
        if device != "auto" and torch.device(device) != torch.device(model.device):
            raise ValueError(
                f"device is {device!r}, but the given model is on {str(model.device)!r}; "
                "leave device='auto', or pass the model's name"
            )
        return model
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return WorldModel.from_pretrained(model, device=device)


def draw_seed(generator: np.random.Generator) -> int:
    """The next episode seed of an environment's own sequence."""
    return int(generator.integers(2**31))


def share_imagination(
    model: str | os.PathLike[str] | WorldModel | Imagination, settings: ImaginationOptions
) -> tuple[Imagination, bool]:
    """The imagination to use, and whether it was made here (and is to be closed by its maker)."""
    check_names(settings, ImaginationOptions.__annotations__, "setting")
    if not isinstance(model, Imagination):
        return Imagination(model, **settings), True
    if set(settings) - {"max_episode_steps"}:
        raise ValueError(f"an Imagination has its settings already; got {sorted(settings)} as well")
    if "max_episode_steps" in settings:  # gym.make_vec hands over the limit that the id is registered with
        model = copy.copy(model)
        model.limit_episodes(settings["max_episode_steps"])
    return model, False
