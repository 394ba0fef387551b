"""Who sees whom: every rule against the table, token by token."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kairos_env.world_model.attention.visibility import VISIBLE, Heads, Joint, LayerMemory, Proposal, Stream
from kairos_env.world_model.attention.whole_clip import WholeClip
from kairos_env.world_model.config import VideoConfig

CONFIG = VideoConfig(heads=2, head_dim=4, window=2, dilation=3)
FRAMES, L, N = 8, 3, 2


@dataclass
class Token:
    """One token of a clip: its kind, its frame, and query, key and value of two heads."""

    kind: str
    frame: int
    heads: tuple[Tensor, Tensor, Tensor]


def drawn(kind: str, frames: list[int], count: int, seed: int) -> list[list[Token]]:
    """Tokens of a kind, a list for each frame."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(CONFIG.heads, CONFIG.head_dim, generator=generator)

    return [[Token(kind, frame, (draw(), draw(), draw())) for _ in range(count)] for frame in frames]


def stacked(tokens: list[list[Token]]) -> Heads:
    """(1, F, T, H, K) each."""
    q, k, v = (torch.stack([torch.stack([t.heads[i] for t in row]) for row in tokens])[None] for i in range(3))
    return q, k, v


def sees(query: Token, key: Token, offsets: tuple[int, ...], newest: int) -> bool:
    relation, distance = VISIBLE[query.kind].get(key.kind), query.frame - key.frame
    return {
        "own": distance == 0,
        "before": distance > 0 and distance in offsets,
        "window": distance in offsets,
        "newest": newest - key.frame in offsets,
        "until": distance >= 0,
        "all": True,
        None: False,
    }[relation]


def expected(queries: list[Token], keys: list[Token], offsets: tuple[int, ...], newest: int = -1) -> Tensor:
    """(queries, H K) by one softmax after the other."""
    outputs = []
    for query in queries:
        seen = [key for key in keys if sees(query, key, offsets, newest)]
        scores = torch.stack([(query.heads[0] * key.heads[1]).sum(-1) for key in seen]) / CONFIG.head_dim**0.5
        values = torch.stack([key.heads[2] for key in seen])
        outputs.append((scores.softmax(0)[..., None] * values).sum(0).flatten())
    return torch.stack(outputs)


def flat(tokens: list[list[Token]]) -> list[Token]:
    return [token for row in tokens for token in row]


def empty(kind: str, lead: bool, frames: int = 1) -> LayerMemory:
    groups = (torch.zeros(1, lead + L, CONFIG.heads, CONFIG.head_dim),) * (CONFIG.offsets(kind)[-1] + frames)
    return LayerMemory(groups, groups)


@pytest.mark.parametrize(("kind", "lead", "split"), [*itertools.product(["swa", "dswa"], [True, False], [FRAMES, 3])])
def test_streaming(kind: str, lead: bool, split: int) -> None:
    """Frames in one piece and in two, one that only reads, and chunks at each of the newest frames."""
    offsets, every = CONFIG.offsets(kind), list(range(FRAMES))
    leads, clean, noisy, chunk = (
        drawn(name, every, count, seed) for seed, (name, count) in enumerate(zip(VISIBLE, (1, L, L, N)))
    )
    keys = flat(leads) * lead + flat(clean)
    memory, video, action = empty(kind, lead), [], []
    for part in (slice(0, split), slice(split, FRAMES)):
        if not clean[part]:
            continue
        past, led = torch.tensor([part.start]), stacked(leads[part]) if lead else None
        if part.start:
            one = slice(part.start, part.start + 1)
            heads, _, same = Stream(CONFIG, past, remembered=False).attend(
                kind, stacked(noisy[one]), stacked(leads[one]) if lead else None, memory
            )
            own = noisy[part.start]
            torch.testing.assert_close(heads[0, 0], expected(own, keys + own, offsets))
            assert same is memory
        heads, acted, memory = Stream(CONFIG, past).attend(kind, stacked(clean[part]), led, memory)
        video.append(heads)
        action.append(acted)
    torch.testing.assert_close(torch.cat(video, 1)[0].flatten(0, 1), expected(flat(clean), keys, offsets))
    if lead:
        torch.testing.assert_close(torch.cat(action, 1)[0, :, 0], expected(flat(leads), keys, offsets))

    longer = empty(kind, lead, FRAMES)
    _, _, longer = Stream(CONFIG, torch.tensor([0])).attend(
        kind, stacked(clean), stacked(leads) if lead else None, longer
    )
    twice = tuple(torch.cat([x, x]) for x in stacked(chunk))  # of two tasks, say
    _, proposals, _ = Proposal(CONFIG, torch.tensor([FRAMES])).attend(kind, None, twice, longer)
    for f in every:
        for row in range(2):
            torch.testing.assert_close(proposals[row, f], expected(chunk[f], keys + chunk[f], offsets))

    past = torch.tensor([FRAMES])
    late = stacked(drawn("chunk", [FRAMES - 1], N, 9))
    _, out, _ = Proposal(CONFIG, past).attend(kind, None, late, memory)
    tokens = flat(drawn("chunk", [FRAMES - 1], N, 9))
    torch.testing.assert_close(out[0, 0], expected(tokens, keys + tokens, offsets))

    after = list(range(FRAMES, FRAMES + 4))
    actions, frames = drawn("action", after, 1, 7), drawn("frame", after, L, 8)
    together = [x[:, :, 0] for x in stacked(actions)]
    heads, out, _ = Joint(CONFIG, past).attend(kind, stacked(frames), tuple(together), memory)
    keys = keys + flat(actions) + flat(frames)
    torch.testing.assert_close(out[0], expected(flat(actions), keys, offsets, FRAMES - 1))
    torch.testing.assert_close(heads[0].flatten(0, 1), expected(flat(frames), keys, offsets, FRAMES - 1))


@pytest.mark.parametrize("flags", [*itertools.product([True, False], repeat=3)])
@pytest.mark.parametrize("kind", ["swa", "dswa"])
def test_whole_clips(kind: str, flags: tuple[bool, bool, bool]) -> None:
    frames, history, actions = 10, 4, 5
    clip = WholeClip(CONFIG, history, *flags)
    pattern = clip.pattern(kind, frames, L, actions)
    total = frames * L
    index = torch.arange(total + actions)
    got = pattern.visible(index[:, None], index)

    def described(token: int) -> tuple[str, int]:
        if token >= total:
            return "plan", token - total
        return ("history" if token // L < history else "future"), token // L

    for query, key in itertools.product(range(total + actions), repeat=2):
        (q, at), (k, to) = described(query), described(key)
        want = {
            "around": abs(at - to) in CONFIG.offsets(kind),
            "led": history + to * (frames - history) // actions <= at,
            "all": True,
            None: False,
        }[clip.sees(q, k)]
        assert bool(got[query, key]) == want, (q, at, k, to)
