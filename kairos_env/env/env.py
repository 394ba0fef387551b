"""The world model as a Gymnasium environment: ``gym.make("Kairos-WorldModel-v0")``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Unpack

import gymnasium as gym
import numpy as np

from kairos_env.env.episodes import EpisodeState, Outcome, check_episodes
from kairos_env.env.imagination import Imagination, draw_seed, share_imagination
from kairos_env.env.settings import ImaginationOptions, check_render_mode
from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.records import Array, RobotSpec

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


class WorldModelEnv(gym.Env[dict[str, Array], Array]):
    """One robot, imagined.

    Its spaces are the robot's, so the agent that acts here acts in the simulator and on the robot. An
    episode starts from a real observation and is imagined from there on.

    ``info`` of reset and step: ``success`` (bool), ``success_probability`` (0 ... 1, unless nobody taught the
    model what success is), ``uncertainty``
    (the largest expected error of a position [m]; of models that expect none, see `StepOutput`),
    ``imagined_step``, ``task``, ``instruction``, ``seed`` (of the episode: `reset` with it starts the
    same one again), and where there is such a thing:

    - ``objects``: float32 (O, 3), of models that read them, see `WorldState.objects`;
    - ``errors``: float32 (E,), what the model expects to be wrong by, named by `WorldModel.error_names`;
    - ``familiarity``: 0 ... 1, how well the tokenizer knows what the episode started from, see `Familiarity`;
      ``uncertainty`` is divided by it;
    - ``trust``: 0 ... 1, the chance that hand and objects are within 3 cm of where they are imagined,
      times ``familiarity``; of models that expect errors of positions;
    - ``known_instruction``: whether the model was trained on the instruction;
    - ``truncated_reason``, when truncated here: ``"time_limit"``, ``"horizon"`` (imagination is not to be
      believed for longer), ``"non_finite"`` (the model broke down) or ``"uncertainty"``.

    Args:
        model: bundled name, folder, hub id, a loaded `WorldModel`, or an `Imagination` to share.
        render_mode: ``"rgb_array"`` or None. ``gym.make(..., render_mode="human")`` shows it in a window
            (Gymnasium's HumanRendering, needs pygame).
        settings: ``task``, ``start``, ``reward``, ``steps``, ``device``, ``max_episode_steps``,
            ``observation``, ``success_threshold``, ``success_ends``, ``uncertainty_limit``, ``horizon``,
            ``unknown_instructions``, see `Imagination`. ``gym.make``
            keeps ``max_episode_steps`` for itself (Gymnasium's TimeLimit around this environment).

    Example:
        >>> import gymnasium as gym, kairos_env
        >>> env = gym.make("Kairos-WorldModel-v0", task="push")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())  # doctest: +SKIP
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 (Gymnasium's form)

    def __init__(
        self,
        model: str | os.PathLike[str] | WorldModel | Imagination = "kairos-tiny",
        *,
        render_mode: str | None = None,
        **settings: Unpack[ImaginationOptions],
    ) -> None:
        check_render_mode(render_mode)
        self.imagination, self._own = share_imagination(model, settings)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self.imagination.spec.control_rate_hz}
        self.observation_space: gym.spaces.Dict = self.imagination.observation_space  # type: ignore[assignment]
        self.action_space = self.imagination.action_space
        self._episode: EpisodeState | None = None

    @property
    def robot_spec(self) -> RobotSpec:
        """The robot, with one decision for each imagined frame."""
        return self.imagination.spec

    @property
    def model(self) -> WorldModel:
        """The world model."""
        return self.imagination.model

    def tasks(self) -> dict[str, str]:
        """Tasks that `reset` takes: name -> instruction."""
        return dict(self.model.tasks)

    def initial_states(self, task: str | None = None) -> int | None:
        """How many initial states a task has, from 0 on; None where any number is one."""
        return self.imagination.initial_observations.count(task)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode from a real observation.

        Args:
            seed: of the episode, and of the sequence from which later resets without one draw theirs.
            options: ``observation`` (`Observation`, or the dict of a Gymnasium environment of this robot),
                ``initial_state`` (of a simulator, or the index of a recorded one, also called ``start``) say where;
                ``task`` (name) or ``instruction`` (words) say what for.

        Raises:
            SpecMismatch: the observation of another robot.
            ValueError: an unknown option, task, instruction or start.
        """
        super().reset(seed=seed)
        episode = draw_seed(self.np_random) if seed is None else seed
        outcome = self.imagination.begin([episode], [{} if options is None else options])
        self._episode = outcome.episodes
        return _first(outcome.observation), _first_info(outcome)

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Imagines one decision.

        Args:
            action: (A,), physical units; clipped to the robot's range.

        Raises:
            ValueError: wrong shape, not numeric, or not finite.
            ResetNeeded: before the first `reset`.
        """
        one = action if isinstance(action, np.ndarray) else self.robot_spec.check_action(action)
        outcome = self.imagination.step(self.get_state(), one[None])
        self._episode = outcome.episodes
        return (
            _first(outcome.observation),
            float(outcome.reward[0]),
            bool(outcome.terminated[0]),
            bool(outcome.truncated[0]),
            _first_info(outcome),
        )

    def get_state(self) -> EpisodeState:
        """The present state of the episode: a value that later steps do not change."""
        if self._episode is None:
            raise gym.error.ResetNeeded("no episode has begun; call reset() first")
        return self._episode

    def set_state(self, state: EpisodeState) -> None:
        """Returns to the state of an episode of this or another environment of the same model.

        The same actions then lead to the same future. What later resets draw is not affected.

        Raises:
            TypeError: no state. ValueError: of several episodes, or of another model.
        """
        self._episode = check_episodes(state, 1, self.imagination.fingerprint)

    def fork(self, n: int) -> WorldModelVectorEnv:
        """``n`` copies of the present state, imagined side by side in one batch.

        They start equal and stay equal under equal actions: what differs later, the actions did. Nothing
        resets by itself; a branch that has finished stays finished and earns nothing more.
        """
        branches = WorldModelVectorEnv(
            n, self.imagination, autoreset_mode="Disabled", finished="hold", render_mode=self.render_mode
        )
        branches.set_state(self.get_state().select(np.zeros(n, np.int64)))
        return branches

    def render(self) -> Array | None:  # type: ignore[override]
        """The newest frame, enlarged (64 x 64 to 256 x 256): uint8 (height, width, 3). None without a render mode."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a mode: gym.make(..., render_mode='rgb_array')")
            return None
        return self.imagination.render(self.get_state())[0]

    def close(self) -> None:
        """Frees the simulator that gave starts, if this environment made one."""
        if self._own:
            self.imagination.close()
        self._episode = None


def _first(columns: dict[str, Array]) -> dict[str, Array]:
    return {key: column[0] for key, column in columns.items()}


def _first_info(outcome: Outcome) -> dict[str, Any]:
    """Plain Python values, as a single environment's users expect."""
    info = {key: column[0] if column.ndim > 1 else column.tolist()[0] for key, column in outcome.info.items()}
    if not info["truncated_reason"]:
        del info["truncated_reason"]
    return info
