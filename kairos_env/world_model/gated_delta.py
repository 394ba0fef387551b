"""The gated delta rule: linear-time memory with decay and error-correcting writes.

Per head there is one matrix ``S`` of shape (K, V), the memory. A token decays it and then writes the
*difference* between its value and what the decayed memory already returns for its key:

    S <- exp(g) S
    S <- S + k (x) beta (v - S^T k)
    o  = S^T q

with ``q`` and ``k`` L2-normalised and ``q`` scaled by ``1 / sqrt(K)``. The decay comes first: the old
value is read from the decayed memory.

``naive_gated_delta`` is these lines. ``chunk_gated_delta`` computes the same in parallel within chunks
and carries only one (K, V) matrix from chunk to chunk; ``fla_gated_delta`` leaves that to
flash-linear-attention's CUDA kernels. The layer around it is ``gated_delta_net.GatedDeltaNet``.

Letters: B batch, F frames, L tokens per frame, T tokens, D model width, H heads, K key width,
V value width, N chunks, C tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.extras import require
from kairos_env.world_model.engines import EngineError, choose

# Added to the sum of squares, so that a zero key stays zero instead of becoming NaN.
L2_EPS = 1e-6

# B * H * tokens that the chunked form works on at once. On a CPU about 1 MB per tensor at K = 64, which stays
# in the cache. Elsewhere a bound on the memory: about 1.6 GB at K = 256, V = 512, most of it states before chunks.
CPU_SEGMENT_ROWS = 4096
SEGMENT_ROWS = 32768

# The widest key that flash-linear-attention's kernels take.
FLA_WIDEST_KEY = 256


def naive_gated_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence, one token at a time: the reference for the fast forms.

    Args:
        q: (B, T, H, K) queries, any length; normalised here.
        k: (B, T, H, K) keys, any length; normalised here.
        v: (B, T, H, V) values.
        g: (B, T, H) log decay, <= 0.
        beta: (B, T, H) write strength, in [0, 1].
        state: (B, H, K, V) memory before the first token; None is zeros.

    Returns:
        outputs (B, T, H, V) in ``v``'s dtype, and the memory after the last token (B, H, K, V) in float32
        (float64 for float64 inputs).

    Raises:
        ValueError: the shapes do not fit together.
    """
    _check_shapes(q, k, v, g, beta, state)
    with torch.autocast(q.device.type, enabled=False):
        dtype = compute_dtype(v)
        q, k = _normalise(q.to(dtype)) / math.sqrt(q.shape[-1]), _normalise(k.to(dtype))
        values, decay, beta = v.to(dtype), g.to(dtype).exp(), beta.to(dtype)
        memory = _initial_state(state, k, values)
        outputs = []
        tokens = (x.unbind(1) for x in (q, k, values, decay[..., None, None], beta[..., None]))
        for q_t, k_t, v_t, decay_t, beta_t in zip(*tokens, strict=True):
            memory = decay_t * memory
            error = v_t - torch.einsum("bhkv,bhk->bhv", memory, k_t)
            memory = memory + torch.einsum("bhk,bhv->bhkv", k_t, beta_t * error)
            outputs.append(torch.einsum("bhkv,bhk->bhv", memory, q_t))
        return torch.stack(outputs, dim=1).to(v.dtype), memory


def chunk_gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """The same as ``naive_gated_delta``, parallel within chunks of at most ``chunk`` tokens.

    Args:
        q: (B, T, H, K) queries, as in ``naive_gated_delta``.
        k: (B, T, H, K) keys.
        v: (B, T, H, V) values.
        g: (B, T, H) log decay, <= 0.
        beta: (B, T, H) write strength, in [0, 1].
        state: (B, H, K, V) memory before the first token; None is zeros.
        chunk: changes the speed, not the result; 32 is the fastest on a CPU.

    Returns:
        outputs (B, T, H, V), final memory (B, H, K, V).

    Raises:
        ValueError: the shapes do not fit together, or ``chunk`` is below 1.
    """
    _check_shapes(q, k, v, g, beta, state)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    # Equal chunks need the least padding: 65 tokens are two chunks of 33, not 64 + 1 padded to 64.
    size = -(-q.shape[1] // -(-q.shape[1] // chunk))
    # A long sequence goes through in segments, whose intermediates are freed one after the other.
    rows = CPU_SEGMENT_ROWS if q.device.type == "cpu" else SEGMENT_ROWS
    segment = size * max(1, rows // (q.shape[0] * q.shape[2] * size))
    outputs = []
    parts = [x.split(segment, dim=1) for x in (q, k, v, g, beta)]
    for q_s, k_s, v_s, g_s, beta_s in zip(*parts, strict=True):
        output, state = _chunked(q_s, k_s, v_s, g_s, beta_s, state, size)
        outputs.append(output)
    assert state is not None
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], state


def fla_gated_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as ``naive_gated_delta`` by flash-linear-attention: on CUDA, ``v`` in half precision, K <= 256."""
    _check_shapes(q, k, v, g, beta, state)
    width = q.shape[-1]
    if width > FLA_WIDEST_KEY:
        raise EngineError(
            f"gated_delta engine 'fla' takes keys up to {FLA_WIDEST_KEY} wide, not {width}; use 'chunked'"
        )
    output, memory = require("fla.ops.gated_delta_rule", "gpu").chunk_gated_delta_rule(
        q.to(v.dtype),
        k.to(v.dtype),
        v,
        g.float(),
        beta.float(),
        scale=1 / math.sqrt(width),
        initial_state=None if state is None else state.float(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,  # with the same epsilon
    )
    return output, memory


def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The gated delta rule; arguments and results as in ``naive_gated_delta``, engines as in ``engines.choose``."""
    run = ENGINES[choose("gated_delta", v.device, v.dtype, engine)]
    return run(q, k, v, g, beta, state)


ENGINES: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "naive": naive_gated_delta,
    "chunked": chunk_gated_delta,
    "fla": fla_gated_delta,
}


# ---------------------------------------------------------------------------------------------------
# The chunked form. With G_i = sum of g up to token i of the chunk, S the memory before it, and
# u_i = beta_i (v_i - (decayed memory)^T k_i) what token i really writes:
#
#     (I + A) u = beta (v - e^G k S)       A_ij = beta_i e^(G_i - G_j) k_i . k_j   for j < i
#     o         = e^G q S + M u            M_ij = e^(G_i - G_j) q_i . k_j          for j <= i
#     S'        = e^(G_C) S + sum_j e^(G_C - G_j) k_j (x) u_j
#
# u is affine in S: u = x_v + x_k S with (I + A) [x_v | x_k] = [beta v | -beta e^G k]. So everything but
# u and S' is computed for all chunks at once. (S' is affine in S, too, and folding u away would leave one
# product per step; but its K x K matrices cost more than they save, most of all where C < K.)
# ---------------------------------------------------------------------------------------------------


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        batch, length, heads = g.shape
        width_k, width_v = k.shape[-1], v.shape[-1]
        count, dtype = -(-length // size), compute_dtype(v)
        # All (B * H * N, C, ...); the padding (k = 0, beta = 0, g = 0) leaves the memory as it is.
        query, key, values, decay, strength = (_split_chunks(x, count, size, dtype) for x in (q, k, v, g, beta))
        query, key = _normalise(query) / math.sqrt(width_k), _normalise(key)
        query_key, strict, decay_in, decay_out = _scores(query, key, decay, strength)

        right = torch.cat([values, -(decay_in * key)], dim=-1) * strength[..., None]
        solved = _solve(strict, right).unflatten(0, (-1, count))  # (B * H, N, C, V + K)
        by_chunk = (
            *(x.unbind(1) for x in solved.split([width_v, width_k], dim=-1)),
            (decay_out * key).unflatten(0, (-1, count)).mT.unbind(1),
            decay_in[:, -1:].unflatten(0, (-1, count)).unbind(1),
        )
        memory = _initial_state(state, k, v.to(dtype)).flatten(0, 1)
        before, writes = [], []
        for x_v, x_k, key_n, decay_n in zip(*by_chunk, strict=True):
            before.append(memory)
            writes.append(torch.baddbmm(x_v, x_k, memory))
            memory = torch.baddbmm(decay_n * memory, key_n, writes[-1])
        states = torch.stack(before, dim=1)  # (B * H, N, K, V)
        written = torch.stack(writes, dim=1)

        output = torch.baddbmm(query_key @ written.flatten(0, 1), decay_in * query, states.flatten(0, 1))
        output = output.view(batch, heads, count * size, width_v)[:, :, :length].transpose(1, 2)
        return output.to(v.dtype), memory.unflatten(0, (batch, heads))


def _scores(query: Tensor, key: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """M (causal), A (strictly lower), e^G and e^(G_C - G), for (X, C, K) queries and keys."""
    size = g.shape[-1]
    # Sums in float64: a strong decay early in the chunk must not cost the digits of the later, weak ones.
    total = g.double().cumsum(-1)
    future = torch.ones(size, size, dtype=torch.bool, device=g.device).triu(1)
    # Masked before exp: differences towards the future are positive and would overflow.
    between = (total[:, :, None] - total[:, None, :]).to(g.dtype).masked_fill(future, -math.inf).exp()
    query_key = (query @ key.mT) * between
    strict = ((key @ key.mT) * between * beta[..., None]).tril(-1)
    decay_in = total.to(g.dtype).exp()[..., None]
    decay_out = (total[:, -1:] - total).to(g.dtype).exp()[..., None]
    return query_key, strict, decay_in, decay_out


def _solve(strict: Tensor, right: Tensor) -> Tensor:
    """(I + A)^-1 ``right`` for strictly lower A (X, C, C) and right (X, C, R)."""
    # Transposed, because LAPACK is column-major: two to four times faster than on row-major matrices.
    # Substitution, not a product of powers of A: those grow huge where neighbouring keys are alike.
    return torch.linalg.solve_triangular(strict.mT, right.mT, upper=True, left=False, unitriangular=True).mT


def _split_chunks(x: Tensor, count: int, size: int, dtype: torch.dtype) -> Tensor:
    """(B, T, H, ...) to contiguous (B * H * N, C, ...), zero-padded behind."""
    missing = count * size - x.shape[1]
    x = x.to(dtype).transpose(1, 2)
    if missing:
        x = F.pad(x, (0, 0, 0, missing) if x.ndim == 4 else (0, missing))
    return x.reshape(-1, size, *x.shape[3:])


def _normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


def compute_dtype(v: Tensor) -> torch.dtype:
    return torch.float64 if v.dtype == torch.float64 else torch.float32


def _initial_state(state: Tensor | None, k: Tensor, v: Tensor) -> Tensor:
    if state is None:
        return v.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3])
    return state.to(v.dtype)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None) -> None:
    legal = q.ndim == k.ndim == v.ndim == 4 and q.shape == k.shape and q.shape[:3] == v.shape[:3] and q.shape[1] > 0
    legal = legal and g.shape == beta.shape == q.shape[:3]
    legal = legal and (state is None or state.shape == (q.shape[0], q.shape[2], q.shape[3], v.shape[3]))
    if not legal:
        given = ", ".join(
            f"{name} {tuple(x.shape)}"
            for name, x in (("q", q), ("k", k), ("v", v), ("g", g), ("beta", beta), ("state", state))
            if x is not None
        )
        raise ValueError(
            f"gated delta rule: got {given}; expected q and k (B, T, H, K) with T >= 1, v (B, T, H, V), "
            "g and beta (B, T, H), state (B, H, K, V) or None"
        )
