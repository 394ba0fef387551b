"""The published world-action transformer in float64, straight from its formulas: loops, dense masks, no layers.

Shares no code with the package. Weights come as a dictionary under the published names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Visible = Callable[[int, int], bool]  # (query index, key index) over [video tokens | actions]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    bias = w.get(f"{name}.bias")
    return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    hidden = linear(w, f"{name}.0", x)
    return linear(w, f"{name}.2", hidden * torch.sigmoid(hidden))


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)


def sinusoid(sigma: float, rounded: bool) -> Tensor:
    t = torch.tensor(1000 * sigma, dtype=torch.float64)
    if rounded:
        t = t.to(torch.bfloat16).double()
    angles = t * torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    out = torch.cat([angles.cos(), angles.sin()])
    return out.to(torch.bfloat16).double() if rounded else out


def rotate(x: Tensor, positions: list[tuple[int, ...]]) -> Tensor:
    """x (T, H, K): adjacent elements are complex numbers; axes share the K / 2 frequencies."""
    half = x.shape[-1] // 2
    axes = len(positions[0])
    sizes = [half - (axes - 1) * (half // axes)] + [half // axes] * (axes - 1)
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], half, 2).contiguous())
    out = []
    for token, place in enumerate(positions):
        angles = torch.cat(
            [p * torch.tensor([10000 ** (-i / n) for i in range(n)], dtype=torch.float64) for p, n in zip(place, sizes)]
        )
        out.append(z[token] * torch.polar(torch.ones_like(angles), angles))
    return torch.view_as_real(torch.stack(out)).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q (Tq, H, K), k and v (Tk, H, K), mask (Tq, Tk) -> (Tq, H K)."""
    scores = torch.einsum("qhk,shk->hqs", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("hqs,shk->qhk", scores.softmax(-1), v).flatten(1)


def gated_delta(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """x (T, D): short convolutions, decay, delta write, read, gated norm; one token after the other."""

    def conv(which: str) -> Tensor:
        raw = linear(w, f"{name}.{which}_proj", x)
        kernel = w[f"{name}.{which}_conv1d.weight"][:, 0]  # (C, 4)
        padded = torch.cat([raw.new_zeros(3, raw.shape[1]), raw])
        mixed = sum(padded[i : i + len(raw)] * kernel[:, i] for i in range(4))
        return (mixed * torch.sigmoid(mixed)).unflatten(-1, (heads, -1))

    q, k, v = conv("q"), conv("k"), conv("v")
    q = q / torch.sqrt((q * q).sum(-1, keepdim=True) + 1e-6) / math.sqrt(q.shape[-1])
    k = k / torch.sqrt((k * k).sum(-1, keepdim=True) + 1e-6)
    beta = torch.sigmoid(linear(w, f"{name}.b_proj", x))
    softplus = torch.log1p(torch.exp(linear(w, f"{name}.a_proj", x) + w[f"{name}.dt_bias"]))
    decay = torch.exp(-torch.exp(w[f"{name}.A_log"]) * softplus)
    outputs = []
    memory = x.new_zeros(heads, k.shape[-1], v.shape[-1])
    for t in range(len(x)):
        memory = decay[t][:, None, None] * memory
        error = v[t] - torch.einsum("hkv,hk->hv", memory, k[t])
        memory = memory + torch.einsum("hk,hv->hkv", k[t], beta[t][:, None] * error)
        outputs.append(torch.einsum("hkv,hk->hv", memory, q[t]))
    gate = linear(w, f"{name}.g_proj", x).unflatten(-1, (heads, -1))
    out = rms(torch.stack(outputs), w[f"{name}.o_norm.weight"]) * gate * torch.sigmoid(gate)
    return linear(w, f"{name}.o_proj", out.flatten(1))


def published_transformer(
    weights: Mapping[str, Tensor],
    heads: int,
    delta_heads: int,
    kinds: tuple[str, ...],
    visible: Callable[[str], Visible],
    context: Tensor,
    latents: Tensor | None = None,
    sigma: list[float] | None = None,
    actions: Tensor | None = None,
    sigma_a: float = 0.0,
    rounded: bool = True,
    context_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One pass over one clip: latents (F, C, h, w), context (S, text), actions (N, A) -> both velocities.

    ``visible(kind)`` says which keys a query sees in a softmax layer of that kind.
    """
    w = {k: t.double() for k, t in weights.items()}
    context = context.double()
    assert latents is not None and sigma is not None
    frames, channels, height, width = latents.shape
    rows, columns = height // 2, width // 2
    # patches of 2 x 2 cells in raster order
    patches, positions, levels = [], [], []
    for f in range(frames):
        for y in range(rows):
            for x in range(columns):
                patches.append(latents[f, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].double().reshape(-1))
                positions.append((f, y, x))
                levels.append(sigma[f])
    kernel = w["video_dit.patch_embedding.weight"]
    video = torch.stack(patches) @ kernel.reshape(len(kernel), -1).T + w["video_dit.patch_embedding.bias"]

    def times(expert: str, level: float) -> tuple[Tensor, Tensor]:
        t = mlp(w, f"{expert}.time_embedding", sinusoid(level, rounded))
        return t, linear(w, f"{expert}.time_projection.1", t * torch.sigmoid(t)).unflatten(-1, (6, -1))

    t_video = [times("video_dit", level) for level in levels]
    streams = {"video_dit": (video, torch.stack([m for _, m in t_video]), positions)}
    if actions is not None:
        embedded = linear(w, "action_dit.action_encoder", actions.double())
        t_action = times("action_dit", sigma_a)[1].expand(len(embedded), -1, -1)
        streams["action_dit"] = (embedded, t_action, [(i,) for i in range(len(embedded))])
    x = {name: stream[0] for name, stream in streams.items()}
    ctx = {name: mlp(w, f"{name}.text_embedding", context) for name in streams}
    valid = torch.ones(len(context), dtype=torch.bool) if context_mask is None else context_mask

    for index, kind in enumerate(kinds):
        mods, hidden, projected = {}, {}, {}
        for name, (_, modulation, place) in streams.items():
            at = f"{name}.blocks.{index}"
            mods[name] = (w[f"{at}.modulation"][0] + modulation).unbind(1)  # scale, shift, gate; scale, shift, gate
            hidden[name] = layer_norm(x[name]) * (1 + mods[name][0]) + mods[name][1]
            if f"{at}.self_attn.q.weight" in w:
                q = rms(linear(w, f"{at}.self_attn.q", hidden[name]), w[f"{at}.self_attn.norm_q.weight"])
                k = rms(linear(w, f"{at}.self_attn.k", hidden[name]), w[f"{at}.self_attn.norm_k.weight"])
                v = linear(w, f"{at}.self_attn.v", hidden[name])
                q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
                projected[name] = rotate(q, place), rotate(k, place), v
        mixed = {}
        if kind == "gdn":
            at = f"video_dit.blocks.{index}.gated_delta"
            mixed["video_dit"] = gated_delta(w, at, hidden["video_dit"], delta_heads)
            if actions is not None:
                q, k, v = projected["action_dit"]
                mixed["action_dit"] = attention(q, k, v, torch.ones(len(q), len(q), dtype=torch.bool))
        else:
            q, k, v = (torch.cat([projected[n][i] for n in streams]) for i in range(3))
            sees = visible(kind)
            mask = torch.tensor([[sees(i, j) for j in range(len(k))] for i in range(len(q))])
            out = attention(q, k, v, mask)
            mixed = {"video_dit": out[: len(video)], "action_dit": out[len(video) :]}
        for name in streams:
            at = f"{name}.blocks.{index}"
            if f"{at}.self_attn.o.weight" in w:
                mixed[name] = linear(w, f"{at}.self_attn.o", mixed[name])
            x[name] = x[name] + mods[name][2] * mixed[name]
            affine = layer_norm(x[name]) * w[f"{at}.cross_attn_norm.weight"] + w[f"{at}.cross_attn_norm.bias"]
            q = rms(linear(w, f"{at}.cross_attn.q", affine), w[f"{at}.cross_attn.norm_q.weight"])
            k = rms(linear(w, f"{at}.cross_attn.k", ctx[name]), w[f"{at}.cross_attn.norm_k.weight"])
            v = linear(w, f"{at}.cross_attn.v", ctx[name])
            q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
            crossed = attention(q, k, v, valid.expand(len(q), -1))
            x[name] = x[name] + linear(w, f"{at}.cross_attn.o", crossed)
            x[name] = x[name] + mods[name][5] * mlp(
                w, f"{at}.ffn", layer_norm(x[name]) * (1 + mods[name][3]) + mods[name][4]
            )
    t = torch.stack([t for t, _ in t_video])
    shift, scale = (w["video_dit.head.modulation"][0] + t[:, None]).unbind(1)  # this order here
    out = linear(w, "video_dit.head.head", layer_norm(x["video_dit"]) * (1 + scale) + shift)
    velocity = torch.zeros(latents.shape, dtype=torch.float64)
    for token, (f, y, column) in enumerate(positions):
        cells = out[token].reshape(2, 2, channels).permute(2, 0, 1)  # channel last
        velocity[f, :, 2 * y : 2 * y + 2, 2 * column : 2 * column + 2] = cells
    return velocity, None if actions is None else linear(w, "action_dit.head", x["action_dit"])
