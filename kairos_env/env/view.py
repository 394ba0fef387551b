"""How an agent sees a robot: the same observations of a model's states in imagination and in reality."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, get_args

import gymnasium as gym
import numpy as np

from kairos_env.records import Array
from kairos_env.runs import did_you_mean
from kairos_env.world_model.features import LIMIT
from kairos_env.world_model.state import LATENT_LIMIT

if TYPE_CHECKING:
    import torch

    from kairos_env.world_model.model import WorldModel

logger = logging.getLogger(__name__)

ObservationForm = Literal["pixels", "latent", "features"]


class View:
    """Observations of one form.

    ``"pixels"`` is the robot's own observation space. ``"latent"`` has ``latent`` float32 (C, h, w), normalised, and
    ``proprio``. ``"features"`` has ``features`` float32 (K,) in [-10, 10], which `WorldModel.feature_names` names:
    normalised proprioception, object positions and their differences. The last two decode nothing.

    Args:
        model: whose states are seen.
        form: of the observations.

    Raises:
        ValueError: an unknown form.
    """

    def __init__(self, model: WorldModel, form: ObservationForm) -> None:
        legal = get_args(ObservationForm)
        if form not in legal:
            raise ValueError(f"unknown observation {form!r}; {did_you_mean(str(form), legal)}")
        self.model, self.form, self.spec = model, form, model.imagined_spec
        self.space: gym.spaces.Dict = self.spec.observation_space
        if form == "latent":
            latent = gym.spaces.Box(-LATENT_LIMIT, LATENT_LIMIT, model.latent_shape, np.float32)
            self.space = gym.spaces.Dict({"latent": latent, "proprio": self.space["proprio"]})
        elif form == "features":
            features = gym.spaces.Box(-LIMIT, LIMIT, (len(model.feature_names),), np.float32)
            self.space = gym.spaces.Dict({"features": features})
            if not model.objects:
                logger.warning("no data taught the model where objects are: its features are proprioception alone")
        self._low = np.array([field.low for field in self.spec.proprio], np.float32)
        self._high = np.array([field.high for field in self.spec.proprio], np.float32)

    def observe(
        self, latent: torch.Tensor, proprio: torch.Tensor, objects: torch.Tensor, before: torch.Tensor | None
    ) -> dict[str, Array]:
        """What is seen of finite states with these fields, see `WorldState`: columns (B, ...) of the space."""
        if self.form == "features":
            return {"features": self.model.features(proprio, objects).float().cpu().numpy()}
        clipped = self.clip(proprio.cpu().numpy())
        if self.form == "latent":
            # Clipping copies: the state keeps the tensor, and users write into observations.
            return {"latent": _clip(latent.float().cpu().numpy(), -LATENT_LIMIT, LATENT_LIMIT), "proprio": clipped}
        frames = self.model.decode(latent, before)
        return {camera.key: frames[camera.name] for camera in self.spec.cameras} | {"proprio": clipped}

    def clip(self, proprio: Array) -> Array:
        """Proprioception (..., P) within the robot's ranges."""
        return _clip(proprio, self._low, self._high)


def _clip(values: Array, low: Array | float, high: Array | float) -> Array:
    return np.minimum(np.maximum(values, low), high)  # np.clip is slow on few numbers
