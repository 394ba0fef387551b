"""A simulator or a real robot, seen as the imagined one is: what was trained in imagination runs there unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from kairos_env.env.trust import Trust
from kairos_env.env.view import ObservationForm, View
from kairos_env.records import Array, Observation
from kairos_env.sims.make import spec_of

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


class PerceivedEnv(gym.Wrapper[dict[str, Array], Array, dict[str, Array], Array]):
    """Sees pictures and proprioception through a model: every real observation enters its memory.

    Nothing is needed that a robot does not have. ``info`` says of every observation what imagination says of the one
    that it starts from: ``objects`` (O, 3), in metres and in the frame of the hand's position, ``errors``,
    ``uncertainty``, ``familiarity`` and ``trust``, where there is such a thing; see `WorldModelEnv`.

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
        self.view, self.model, self.trust = View(model, observation), model, Trust(model)
        self.observation_space = self.view.space  # type: ignore[assignment]
        self._state: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode, and the model's memory of it."""
        raw, info = self.env.reset(seed=seed, options=options)
        return self._seen(Observation.from_gym(raw, info["instruction"]), None, info)

    def step(self, action: Array) -> tuple[dict[str, Array], Any, bool, bool, dict[str, Any]]:
        """One decision; ``action`` (A,) in physical units."""
        raw, reward, terminated, truncated, info = self.env.step(action)
        seen, info = self._seen(Observation.from_gym(raw, info["instruction"]), action, info)
        return seen, reward, terminated, truncated, info

    def _seen(
        self, observation: Observation, action: Array | None, info: dict[str, Any]
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """An observation, which ``action`` led to (None: it begins an episode), as the model sees it."""
        if action is None:
            state = self.model.observe([observation], seeds=[0])
        else:
            state = self.model.observe([observation], self._state, self.model.spec.check_action(action)[None])
        self._state = state
        strangeness = self.trust.familiarity.strangeness([observation], state.latent)
        told = self.trust.columns(self.trust.uncertainty(state, strangeness), strangeness)
        columns = self.view.observe(state.latent, state.proprio, state.objects, state.before)
        read = {"errors": _array(state.errors)} | ({"objects": _array(state.objects)} if self.model.objects else {})
        said = {key: column.item() for key, column in told.items()} | read
        return {key: column[0] for key, column in columns.items()}, info | said


def _array(values: Any) -> Array:
    """The only row of a tensor."""
    return np.array(values[0].float().cpu().numpy())
