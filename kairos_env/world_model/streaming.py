"""The passes of a world model frame by frame, which its verbs and its training share; what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.world_model.action_expert import StreamingActionDiT
from kairos_env.world_model.config import WorldModelConfig
from kairos_env.world_model.dit import StreamingVideoDiT
from kairos_env.world_model.features import FAR, feature_names, measured_features
from kairos_env.world_model.flow import shown, to_sample
from kairos_env.world_model.heads import FrameHeads
from kairos_env.world_model.interface import Interface, ModelStatistics, SmallInterface
from kairos_env.world_model.mixture import Contexts, MixtureOfTransformers
from kairos_env.world_model.published.interface import ReleasedInterface, StreamingAdditions
from kairos_env.world_model.published.robot_part import RobotPart
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.reader import ObjectReader, Sighting
from kairos_env.world_model.renderer import FrameRenderer
from kairos_env.world_model.sampling import Advance, Parts, Predict, along, towards
from kairos_env.world_model.state import StepOutput, WorldState
from kairos_env.world_model.text.small import make_encoder
from kairos_env.world_model.tokenizers.image import DOWNSAMPLING, Tokenizer


class StreamingPasses(nn.Module):
    """See `WorldModel`, which makes verbs of these."""

    def __init__(
        self,
        config: WorldModelConfig,
        spec: RobotSpec | None,
        tasks: Mapping[str, str],
        statistics: ModelStatistics | None = None,
        starts: Sequence[Observation] = (),
        clips: WorldActionModel | None = None,
        robot: RobotPart | None = None,
    ) -> None:
        super().__init__()
        self.config, self.tasks, self.starts = config, dict(tasks), tuple(starts)
        self.horizons: dict[str, int] = {}  # task -> decisions up to which imagination may be believed, as measured
        self._clips = (clips,)  # not registered: its transformer is the mixture
        self._interface: Interface | None = None
        if clips is not None:
            self._take(clips, robot)
        elif spec is not None:
            self._make(spec, statistics)

    mixture: MixtureOfTransformers[Any, Any]
    compiled: Callable[[WorldState, Tensor, int], StepOutput] | None = None  # see `compiled_step.use_engine`

    def _make(self, spec: RobotSpec, statistics: ModelStatistics | None) -> None:
        """A small model."""
        config = self.config
        self.tokenizer = Tokenizer(config.tokenizer)
        self.text = make_encoder(config.text)
        unit = DOWNSAMPLING * config.video.patch
        self._interface = SmallInterface(spec, self.tokenizer, self.text, statistics, unit)
        channels, text, objects = config.tokenizer.latent_channels, config.text.dim, len(config.objects)
        if config.one_pass:
            features, errors, tokens = len(self.feature_names), len(self.error_names), objects
            scene = features + errors + 1  # see `one_pass.scene`
        else:
            features = scene = tokens = 0
            errors = 1
        video = config.video, channels, text, spec.proprio_dim, spec.action_dim, scene, tokens
        action = config.action, config.video, text, spec.action_dim, features, not config.one_pass
        self.mixture = MixtureOfTransformers(StreamingVideoDiT(*video), StreamingActionDiT(*action))
        width = config.head_dim
        self.heads = FrameHeads(config.video.dim, self.frame_tokens, text, width, objects, features, errors)
        if config.one_pass:
            self.renderer = FrameRenderer(channels, config.video.dim, config.video.patch, features, max(8, width // 4))
        if config.one_pass and objects:
            self.reader = ObjectReader(channels, spec.proprio_dim, objects, max(8, width // 4))

    def _take(self, clips: WorldActionModel, robot: RobotPart | None) -> None:
        """Published weights; what streaming adds to them starts neutral."""
        self.mixture = clips.transformer
        if isinstance(clips.tokenizer, nn.Module):
            self.tokenizer = clips.tokenizer
        if robot is None or clips.config.action is None:
            return
        self._interface = ReleasedInterface(clips, robot.settings, robot.normaliser)
        self.additions = StreamingAdditions(clips.config, clips.transformer.video_dit)
        video = clips.config.video
        self.heads = FrameHeads(video.dim, self.frame_tokens, clips.config.text_dim, self.config.head_dim, neutral=True)
        self.additions.to(self.device, self.dtype)
        self.heads.to(self.device, self.dtype)

    # what it is made of ---------------------------------------------------------------------------------------

    @property
    def interface(self) -> Interface:
        """Between the robot and the network.

        Raises:
            ValueError: published weights that know no robot.
        """
        if self._interface is None:
            raise ValueError(
                f"{self.config.preset!r} makes videos of prompts and pictures (`generate`) and knows no robot: "
                "observing, stepping and acting take weights with an action expert (4b-libero, 4b-robotwin)"
            )
        return self._interface

    def _small(self) -> SmallInterface:
        if not isinstance(self.interface, SmallInterface):
            raise ValueError(f"{self.config.preset!r} has published weights, whose tokenizer and statistics are fixed")
        return self.interface

    @property
    def advance(self) -> Advance:
        """One denoising step, by what the network predicts."""
        return towards if self.config.prediction == "sample" else along

    @property
    def clips(self) -> WorldActionModel:
        """Whole clips and chunks of published weights: more options of the same verbs, on latents and contexts.

        Raises:
            ValueError: a small model.
        """
        if self._clips[0] is None:
            raise ValueError(f"{self.config.preset!r} is a small model; only published weights make whole clips")
        return self._clips[0]

    @property
    def released(self) -> bool:
        """Whether its weights are published ones."""
        return self._clips[0] is not None

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects whose positions are read in every frame; () if no data taught them."""
        return self.config.objects

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.parameters())
        what = f"preset={self.config.preset!r}, robot={self.spec.name!r}, {weights / 1e6:.2f} M weights"
        return f"{type(self).__name__}({what})"

    @property
    def untrained(self) -> tuple[str, ...]:
        """What no episode taught: ``reward``, ``success``, names of objects."""
        return self.config.untrained

    @property
    def error_names(self) -> tuple[str, ...]:
        """Names of the E expected errors: of positions in metres, of the picture in standard deviations of its latent.

        ``"hand"`` is in standard deviations of proprioception where that has no position of a hand.
        """
        return ("hand", *self.objects, "picture") if self.config.one_pass else ("picture",)

    @property
    def error_scale(self) -> Tensor:
        """(E,), in the units of `error_names` per unit inside."""
        metres = [FAR if self.spec.hand_fields else 1.0, *[FAR] * len(self.objects)] if self.config.one_pass else []
        return torch.tensor([*metres, 1.0], device=self.device)

    def calibrated(self, errors: Tensor) -> Tensor:
        """Errors (..., E) > 0 as the weights expect them -> as large as those made on held-out episodes."""
        statistics = self.statistics
        if not statistics.error_slope:
            return errors
        offset, slope = (
            torch.tensor(x, device=errors.device) for x in (statistics.error_offset, statistics.error_slope)
        )
        return (offset + slope * errors.log()).exp()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the K `features`."""
        return feature_names(self.spec, self.objects)

    def features(self, proprio: Tensor, objects: Tensor) -> Tensor:
        """Proprioception (..., P) in physical units and object positions (..., O, 3) in metres -> (..., K).

        See `measured_features`.
        """
        return measured_features(self.spec, self.normalise_proprio(proprio), proprio, objects)

    @property
    def statistics(self) -> ModelStatistics:
        """Normalisation of a small model."""
        return self._small().statistics

    def set_statistics(self, statistics: ModelStatistics) -> None:
        self._small().set_statistics(statistics)

    @property
    def driver(self) -> StreamingVideoDiT | StreamingAdditions:
        """How the video expert is driven frame by frame."""
        return self.mixture.video_dit if self._clips[0] is None else self.additions

    @property
    def follows_actions(self) -> bool:
        """Whether imagined frames depend on actions: published weights have to be fine-tuned for it."""
        return self._clips[0] is None or self.additions.follows_actions

    @property
    def spec(self) -> RobotSpec:
        """The robot, as `act` drives it."""
        return self.interface.spec

    @property
    def fresh(self) -> bool:
        """Whether each real observation begins a memory of its own; see `Interface`."""
        return self.interface.fresh

    @property
    def execute(self) -> int:
        """How many actions of a chunk a policy executes before it decides again."""
        return self.interface.execute

    @property
    def imagined_spec(self) -> RobotSpec:
        """The robot with one decision for each imagined frame."""
        return self.interface.imagined_spec

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a frame."""
        return self.interface.latent_shape

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""
        patch = self.config.video.patch
        return self.latent_shape[1] // patch, self.latent_shape[2] // patch

    @property
    def frame_tokens(self) -> int:
        """L: patches, in small models proprioception, and in those of one pass objects."""
        beside = 0 if self.released else 1 + len(self.objects) * self.config.one_pass
        return self.grid[0] * self.grid[1] + beside

    @property
    def device(self) -> torch.device:
        return self.mixture.video_dit.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.mixture.video_dit.patch_embedding.weight.dtype

    @property
    def chunk_length(self) -> int:
        """N."""
        return self.config.action.chunk

    # boundaries: physical <-> normalised ----------------------------------------------------------------------

    def normalise_actions(self, actions: Array | Tensor) -> Tensor:
        """Physical (..., A) -> normalised; a wrong size or a non-finite value is an error, excess is clipped."""
        array = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else actions
        return self.interface.normalise_actions(array).to(self.device)

    def physical_actions(self, actions: Tensor) -> Tensor:
        """Normalised -> physical (..., A), clipped to the robot's range."""
        return self.interface.physical_actions(actions)

    def normalise_proprio(self, proprio: Tensor) -> Tensor:
        return self.interface.normalise_proprio(proprio)

    def physical_proprio(self, proprio: Tensor) -> Tensor:
        return self.interface.physical_proprio(proprio)

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """Camera -> uint8 (B, H, W, 3); returns normalised latents (B, C, h, w)."""
        return self.interface.encode(images)

    def encode_view(self, images: Tensor) -> Tensor:
        """One camera's uint8 (B, H, W, 3) -> its part of a small model's normalised latents."""
        return self._small().encode_view(images)

    @property
    def encoder_sha256(self) -> str:
        """See `SmallInterface.encoder_sha256`."""
        return self._small().encoder_sha256

    # passes that the verbs and the training share -------------------------------------------------------------

    def see(self, latents: Tensor, proprio: Tensor) -> Sighting:
        """Objects that a small model sees in observed frames: normalised latents (B, F, C, h, w), proprio (B, F, P)."""
        if not self.objects:
            return Sighting(latents.new_zeros(*latents.shape[:2], 0, 3), latents.new_zeros(*latents.shape[:2], 0))
        return self.reader(latents, proprio)

    def contexts(self, context: Tensor, mask: Tensor | None = None) -> Contexts:
        """The instruction as the blocks of either expert see it."""
        return self.mixture.read_context(context, mask)

    def read_actions(self, tokens: Tensor) -> Tensor:
        return self.mixture.action_dit.read(tokens)

    def lead(self, action: Tensor, has_action: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tokens and modulation of clean lead actions: (B, F, A), (B, F) -> (B, F, 1, Da), (B, F, 6 Da).

        None for models of one pass and published weights, which have no such tokens.
        """
        expert = self.mixture.action_dit
        if not isinstance(expert, StreamingActionDiT) or self.config.one_pass:
            return None
        _, modulation = expert.embed(action.new_zeros(action.shape[:2]))
        return expert.embed_lead(action, has_action), modulation

    def embed_chunk(self, actions: Tensor, sigma: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and modulation of chunks (..., N, A) at noise levels sigma (...), features (..., K) of states."""
        expert = self.mixture.action_dit
        _, modulation = expert.embed(sigma, rounded=self.interface.rounded)
        if not self.config.one_pass:
            return expert.action_encoder(actions.to(self.dtype)), modulation
        return expert.embed_actions(shown(self.config.prediction, actions, sigma), features), modulation

    def action_prediction(self, state: WorldState) -> Predict:
        """What the network says of noisy chunks (B, N, A) at ``state``; see `sampling.denoise`."""
        contexts = self.mixture.read_context(state.context, state.mask, video=False)
        features = self.features(state.proprio, state.objects) if self.config.one_pass else state.proprio

        def predict(data: Parts, level: tuple[float, ...]) -> list[Tensor]:
            sigma = torch.full((state.batch_size,), level[0], device=state.past.device)
            chunk = self.embed_chunk(data[0], sigma, features)
            tokens = self.mixture.propose((chunk[0][:, None], chunk[1][:, None]), contexts, state.layers, state.past)
            return [self.read_actions(tokens[:, 0]).float()]

        return predict

    def denoise_jointly(
        self, state: WorldState, actions: Tensor, video: Tensor, proprio: Tensor, sigma_a: Tensor, sigma_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass of a small model's joint and inverse modes: clean samples of actions, latents, proprioception.

        Args:
            actions: (B, N, A) at noise level sigma_a (B,).
            video, proprio: (B, N, C, h, w), (B, N, P) at noise levels sigma_v (B, N).
        """
        dit, single = self.mixture.video_dit, self.config.one_pass
        last = torch.cat([state.latent[:, None], video[:, :-1]], 1)
        last_proprio = torch.cat([self.normalise_proprio(state.proprio)[:, None], proprio[:, :-1]], 1)
        zero = sigma_v.new_zeros(sigma_v.shape)
        t, modulation = dit.condition(sigma_v, torch.zeros_like(actions), zero)
        noisy = [shown(self.config.prediction, x, sigma_v) if single else x for x in (video, proprio)]
        unknown = video.new_zeros(*video.shape[:2], dit.scene_embedding.in_features) if single else None
        a, x = self.mixture.joint(
            self.embed_chunk(actions, sigma_a, self.features(state.proprio, state.objects)),
            (dit.embed_frames(*noisy, last, last_proprio, unknown), modulation),
            self.contexts(state.context),
            state.layers,
            state.past,
            self.grid,
        )
        latents, states = dit.read(x, t, self.latent_shape[1])
        kind = self.config.prediction
        if kind == "sample":
            latents, states = latents + last, states + last_proprio
        return (
            to_sample(kind, self.read_actions(a).float(), actions, sigma_a),
            to_sample(kind, latents.float(), video, sigma_v),
            to_sample(kind, states.float(), proprio, sigma_v),
        )

    def pooled(self, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean instruction token (..., text) of contexts (..., S, text), masked (..., S)."""
        if mask is None:
            return context.mean(-2)
        counts = mask.unsqueeze(-1).to(context.dtype)
        return (context * counts).sum(-2) / counts.sum(-2)
