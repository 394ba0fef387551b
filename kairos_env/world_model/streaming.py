"""The passes of a world model frame by frame, which its verbs and its training share; what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.world_model.action_expert import StreamingActionDiT
from kairos_env.world_model.config import WorldModelConfig
from kairos_env.world_model.dit import StreamingVideoDiT
from kairos_env.world_model.features import feature_names, measured_features
from kairos_env.world_model.flow import to_sample
from kairos_env.world_model.heads import FrameHeads, Readout
from kairos_env.world_model.interface import Interface, ModelStatistics, SmallInterface
from kairos_env.world_model.mixture import Contexts, MixtureOfTransformers
from kairos_env.world_model.published.interface import ReleasedInterface, StreamingAdditions
from kairos_env.world_model.published.robot_part import RobotPart
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.sampling import Advance, along, towards
from kairos_env.world_model.state import WorldState
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
        self._clips = (clips,)  # not registered: its transformer is the mixture
        self._interface: Interface | None = None
        if clips is not None:
            self._take(clips, robot)
        elif spec is not None:
            self._make(spec, statistics)

    mixture: MixtureOfTransformers[Any, Any]

    def _make(self, spec: RobotSpec, statistics: ModelStatistics | None) -> None:
        """A small model."""
        config = self.config
        self.tokenizer = Tokenizer(config.tokenizer)
        self.text = make_encoder(config.text)
        unit = DOWNSAMPLING * config.video.patch
        self._interface = SmallInterface(spec, self.tokenizer, self.text, statistics, unit)
        channels = config.tokenizer.latent_channels
        self.mixture = MixtureOfTransformers(
            StreamingVideoDiT(config.video, channels, config.text.dim, spec.proprio_dim, spec.action_dim),
            StreamingActionDiT(config.action, config.video, config.text.dim, spec.action_dim),
        )
        self.heads = FrameHeads(config.video.dim, self.frame_tokens, config.text.dim, config.head_dim)

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
    def objects(self) -> tuple[str, ...]:
        """Names of the objects whose positions are read in every frame; () if no data taught them."""
        return ("object",) if self._clips[0] is None else ()

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
        """L: patches, and in small models proprioception."""
        return self.grid[0] * self.grid[1] + (self._clips[0] is None)

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

    def contexts(self, context: Tensor, mask: Tensor | None = None) -> Contexts:
        """The instruction as the blocks of either expert see it."""
        return self.mixture.read_context(context, mask)

    def read_actions(self, tokens: Tensor) -> Tensor:
        return self.mixture.action_dit.read(tokens)

    def lead(self, action: Tensor, has_action: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tokens and modulation of clean lead actions: (B, F, A), (B, F) -> (B, F, 1, Da), (B, F, 6 Da).

        None for published weights, which have no such tokens.
        """
        expert = self.mixture.action_dit
        if not isinstance(expert, StreamingActionDiT):
            return None
        _, modulation = expert.embed(action.new_zeros(action.shape[:2]))
        return expert.embed_lead(action, has_action), modulation

    def denoise_jointly(
        self, state: WorldState, actions: Tensor, video: Tensor, proprio: Tensor, sigma_a: Tensor, sigma_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass of a small model's joint and inverse modes: clean samples of actions, latents, proprioception.

        Args:
            actions: (B, N, A) at noise level sigma_a (B,).
            video, proprio: (B, N, C, h, w), (B, N, P) at noise levels sigma_v (B, N).
        """
        dit, expert = self.mixture.video_dit, self.mixture.action_dit
        last = torch.cat([state.latent[:, None], video[:, :-1]], 1)
        last_proprio = torch.cat([self.normalise_proprio(state.proprio)[:, None], proprio[:, :-1]], 1)
        zero = sigma_v.new_zeros(sigma_v.shape)
        t, modulation = dit.condition(sigma_v, torch.zeros_like(actions), zero)
        _, a_modulation = expert.embed(sigma_a)
        a, x = self.mixture.joint(
            (expert.action_encoder(actions), a_modulation),
            (dit.embed_frames(video, proprio, last, last_proprio), modulation),
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

    def predict_frame(
        self,
        state: WorldState,
        contexts: Contexts,
        lead: Tensor,
        latent: Tensor,
        proprio: Tensor,
        last_proprio: Tensor,
        level: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One denoising pass of the next frame: latent (B, C, h, w) and proprio (B, P), of the kind that
        ``config.prediction`` says, and tokens (B, 1, L, D).
        """
        driver = self.driver
        sigma = torch.full((state.batch_size, 1), level, device=latent.device)
        has_action = torch.ones_like(sigma)
        t, modulation = driver.condition(sigma, lead[:, None], has_action)
        tokens = driver.embed_frames(latent[:, None], proprio[:, None], state.latent[:, None], last_proprio[:, None])
        outputs, _, _ = self.mixture.frames(
            self.lead(lead[:, None], has_action),
            {"noisy": (tokens, modulation)},
            contexts,
            state.layers,
            state.past,
            self.grid,
        )
        out, change = driver.read(outputs["noisy"], t, self.latent_shape[1])
        out, change = out[:, 0].float(), change[:, 0].float()
        if self.config.prediction == "sample":
            out, change = out + state.latent, change + last_proprio
        elif self._clips[0] is not None:  # published weights do not denoise proprioception
            change = (proprio - last_proprio - change) / level
        return out, change, outputs["noisy"]

    def remember(
        self,
        state: WorldState,
        latents: Tensor,
        proprio: Tensor,
        actions: Tensor | None,
        level: float = 0.0,
        contexts: Contexts | None = None,
    ) -> WorldState:
        """Appends F frames in one pass; any split of a clip into calls gives the same memory.

        Args:
            latents: (B, F, C, h, w) normalised.
            proprio: (B, F, P) physical.
            actions: (B, F, A) normalised, each the one that led to its frame; None for a first frame.
            level: noise level that marks the frames, 0 for observed ones.
            contexts: of ``state``, if they were read already.
        """
        driver = self.driver
        sigma = latents.new_full(latents.shape[:2], level)
        has_action = torch.full_like(sigma, float(actions is not None))
        if actions is None:
            actions = latents.new_zeros(*latents.shape[:2], self.spec.action_dim)
        first = state.past == 0
        normal = self.normalise_proprio(proprio)
        # a first frame is its own predecessor: there is nothing that changed
        before = torch.where(first[:, None, None, None], latents[:, 0], state.latent)
        before_proprio = torch.where(first[:, None], normal[:, 0], self.normalise_proprio(state.proprio))
        last = torch.cat([before[:, None], latents[:, :-1]], 1)
        last_proprio = torch.cat([before_proprio[:, None], normal[:, :-1]], 1)
        has_action[:, 0] = has_action[:, 0] * ~first
        _, modulation = driver.condition(sigma, actions, has_action)
        outputs, _, layers = self.mixture.frames(
            self.lead(actions, has_action),
            {"clean": (driver.embed_frames(latents, normal, last, last_proprio), modulation)},
            contexts or self.contexts(state.context, state.mask),
            state.layers,
            state.past,
            self.grid,
        )
        read = self.readout(outputs["clean"][:, -1:], state.context, state.mask)
        return WorldState(
            layers,
            state.past + latents.shape[1],
            latents[:, -1],
            proprio[:, -1],
            state.context,
            state.seed,
            read.reward[:, 0],
            read.success[:, 0].sigmoid(),
            0.1 * read.object_position if self.objects else read.object_position[:, :0],
            state.mask,
            None if self._clips[0] is None else last[:, -1],
        )

    def readout(self, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> Readout:
        """Heads of clean tokens (B, F, L, D)."""
        if mask is None:
            return self.heads(tokens, context.mean(1))
        counts = mask.unsqueeze(-1).to(context.dtype)
        return self.heads(tokens, (context * counts).sum(1) / counts.sum(1))
