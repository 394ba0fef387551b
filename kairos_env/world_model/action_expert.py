"""The action expert: one token per action, as deep as the video expert and as wide where the two attend."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kairos_env.world_model.attention.rotary import rope
from kairos_env.world_model.attention.visibility import Tokens
from kairos_env.world_model.config import ActionConfig, VideoConfig
from kairos_env.world_model.dit import EPS, Block, SelfAttention, TimeEmbedding, two_layers


class ActionBlock(Block):
    """Block of the action expert: full attention width, narrow residual stream."""

    def __init__(self, config: ActionConfig, video: VideoConfig) -> None:
        super().__init__(config.dim, config.ffn_dim, video.heads, video.head_dim)
        self.self_attn = SelfAttention(config.dim, video.heads, video.head_dim)


class ActionDiT(TimeEmbedding):
    """Action expert with exactly the published parameters: one token per action.

    Args:
        proprio_dim: P of a proprioception that joins the context as a token of its own; 0 for none.
    """

    def __init__(
        self, config: ActionConfig, video: VideoConfig, text_dim: int, action_dim: int, proprio_dim: int = 0
    ) -> None:
        super().__init__(config.dim)
        self.config = config
        self.head_dim = video.head_dim
        if proprio_dim:
            self.proprio_encoder = two_layers(proprio_dim, text_dim)
        self.action_encoder = nn.Linear(action_dim, config.dim)
        self.text_embedding = two_layers(text_dim, config.dim)
        self.blocks = nn.ModuleList(ActionBlock(config, video) for _ in video.kinds)
        self.head = nn.Linear(config.dim, action_dim)

    def read(self, tokens: Tensor) -> Tensor:
        """Tokens (..., Da) -> normalised actions or their velocity (..., A)."""
        return self.head(tokens)

    def rotations(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary table of actions (..., N): by their place 0 ... N - 1 in the chunk, whenever it is proposed."""
        return rope(torch.arange(time.shape[-1], device=time.device)[:, None], self.head_dim)

    def embed_chunk(self, actions: Tensor, sigma: Tensor, rounded: bool = False) -> Tokens:
        """Normalised actions (B, N, A) at noise levels sigma (B,); ``rounded`` as in `embed`."""
        _, modulation = self.embed(sigma, rounded=rounded)
        place = torch.arange(actions.shape[1], device=actions.device)
        return Tokens(self.action_encoder(actions), modulation.unsqueeze(-2), self.rotations(place))


class StreamingActionDiT(ActionDiT):
    """The action expert driven decision by decision.

    Args:
        features: K of the measured features that every action token sees; 0 for none.
        lead: whether it also embeds the action that led to a frame, which is remembered with the frame.
    """

    def __init__(
        self,
        config: ActionConfig,
        video: VideoConfig,
        text_dim: int,
        action_dim: int,
        features: int = 0,
        lead: bool = True,
    ) -> None:
        super().__init__(config, video, text_dim, action_dim)
        if lead:
            self.no_action = nn.Parameter(torch.randn(config.dim) * 0.02)  # the lead of a first frame
        if features:
            self.feature_encoder = two_layers(features, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=EPS)

    def embed_actions(self, actions: Tensor, features: Tensor | None = None) -> Tensor:
        """Normalised actions (..., N, A), measured features (..., K) of the state they start from -> (..., N, Da)."""
        tokens = self.action_encoder(actions)
        return tokens if features is None else tokens + self.feature_encoder(features).unsqueeze(-2)

    def embed_lead(self, action: Tensor, has_action: Tensor) -> Tensor:
        """Normalised lead actions (B, F, A) and whether there was one (B, F) -> (B, F, 1, Da)."""
        tokens = torch.where(has_action.bool().unsqueeze(-1), self.action_encoder(action), self.no_action)
        return tokens.unsqueeze(2)

    def read(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(tokens))

    def rotations(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary table of actions at the decisions ``time`` (..., N), beside the picture."""
        beside = torch.tensor([-1.0, -2.0], dtype=torch.float64, device=time.device).expand(*time.shape, 2)
        return rope(torch.cat([time.double().unsqueeze(-1), beside], -1), self.head_dim)
