"""A simulator or a real robot, seen as the imagined one is: what was trained in imagination runs there unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from kairos_env.env.view import ObservationForm, View
from kairos_env.records import Array, Observation
from kairos_env.sims.make import spec_of

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


class PerceivedEnv(gym.Wrapper[dict[str, Array], Array, dict[str, Array], Array]):
    """Sees pictures and proprioception through a model: every real observation enters its memory.

    Nothing is needed that a robot does not have. ``info`` has ``objects`` (O, 3), where the model reads them, in metres
    and in the frame of the hand's position.

    Args:
        env: of the model's robot, whose ``info`` has the ``instruction``.
        model: reads the observations.
        observation: ``"features"`` or ``"latent"``, as in `Imagination`.

    Raises:
        SpecMismatch: another robot.
        ValueError: an observation that needs no perception.
    """

    def __init__(self, env: gym.Env[Any, Any], model: WorldModel, observation: ObservationForm = "features") -> None:
        super().__init__(env)
        if observation == "pixels":
            raise ValueError("observation='pixels' is what the environment shows itself; use 'features' or 'latent'")
        model.spec.require_same(spec_of(env), "model", "environment")
        self.view, self.model = View(model, observation), model
        self.observation_space = self.view.space  # type: ignore[assignment]
        self._state: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode, and the model's memory of it."""
        raw, info = self.env.reset(seed=seed, options=options)
        self._state = self.model.observe([Observation.from_gym(raw, info["instruction"])], seeds=[0])
        return self._seen(info)

    def step(self, action: Array) -> tuple[dict[str, Array], Any, bool, bool, dict[str, Any]]:
        """One decision; ``action`` (A,) in physical units."""
        raw, reward, terminated, truncated, info = self.env.step(action)
        done = self.model.spec.check_action(action)[None]
        self._state = self.model.observe([Observation.from_gym(raw, info["instruction"])], self._state, done)
        seen, info = self._seen(info)
        return seen, reward, terminated, truncated, info

    def _seen(self, info: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
        state = self._state
        columns = self.view.observe(state.latent, state.proprio, state.objects, state.before)
        objects: Array = np.asarray(state.objects[0].cpu(), np.float32)
        return {key: column[0] for key, column in columns.items()}, info | {"objects": objects}
