"""The guide to one's own arm: every command as the one before printed it, and as the guide has it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from paths import ROOT
from so101 import write_so101

from kairos_env.cli import main as cli
from kairos_env.cli.proposal import picture_size, thinning
from kairos_env.play.server import PlayServer
from kairos_env.world_model.checkpoint import read

SMALL = "--preset debug --tokenizer.steps 30 --model.steps 8 --batch 2 --tokenizer-batch 8 --sample-every 8".split()


def guide() -> list[list[str]]:
    """The words of every command in the guide."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "own_arm.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def printed(text: str) -> list[str]:
    """The words of the last command that a text proposes."""
    return shlex.split(re.findall(r"kairos (?!push).*", text)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_each_command_of_the_guide_is_what_the_one_before_printed(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_so101(tmp_path / "datasets" / "my-arm", version, size=(96, 128))
    monkeypatch.chdir(tmp_path)
    known, told = guide(), ""

    def type_in(words: list[str], *also: str) -> str:
        assert words in known, f"{shlex.join(words)} is not in docs/own_arm.md"
        assert cli.main([*words[1:], *also]) == 0
        return capsys.readouterr().out

    told = type_in(["kairos", "data", "inspect", "datasets/my-arm"])
    told = type_in(printed(told), *SMALL)
    assert "pictures 96 x 128 -> 48 x 64, 30 Hz -> 5 Hz, 6 steps a decision" in told and "estimate: about" in told
    model = Path("runs/my-arm/model")
    stored = read(model)
    assert stored.config.untrained == ("reward", "success") and stored.config.objects == () and len(stored.starts) == 2
    assert json.loads((model / "training.json").read_text())["data"]["held_out"] == [
        f"{tmp_path / 'datasets' / 'my-arm'}#{index}" for index in (2, 7)
    ]
    assert (
        "2 held out" in (model / "README.md").read_text() or "2 episodes held out" in (model / "README.md").read_text()
    )
    told = type_in(printed(told))
    assert "the 2 that the training of runs/my-arm/model held out are used" in told
    assert type_in(["kairos", "card", "runs/my-arm/model", "--measured", "runs/my-arm/imagination"])
    told = type_in(printed(told), "--short")
    assert "Nobody taught it reward, success" in told and "expects success" not in told

    def serve(server: PlayServer, poll_interval: float) -> None:
        assert (
            server.session.describe()["untrained"] == ["reward", "success"] and server.session.describe()["starts"] == 2
        )
        server.session.act()
        raise KeyboardInterrupt

    monkeypatch.setattr(PlayServer, "serve_forever", serve)
    assert "the page leaves it out" in type_in(printed(told))


@pytest.mark.parametrize(
    ("height", "width", "cameras", "size"),
    [
        (480, 640, 2, (48, 64)),
        (480, 640, 3, (48, 64)),
        (480, 640, 1, (64, 80)),
        (64, 64, 1, (64, 64)),
        (48, 64, 2, (48, 64)),
        (720, 1280, 1, (64, 112)),
        (1280, 720, 1, (112, 64)),
    ],
)
def test_a_picture_size_keeps_proportions_and_what_a_model_carries(
    height: int, width: int, cameras: int, size: tuple[int, int]
) -> None:
    assert picture_size(height, width, cameras) == size


@pytest.mark.parametrize(
    ("rate", "length", "steps"),
    [(30, 300, 6), (10, 300, 2), (5, 300, 1), (3, 300, 1), (29.97, 300, 6), (30, 100, 3), (30, 20, 1)],
)
def test_the_rate_leaves_episodes_longer_than_a_clip(rate: float, length: int, steps: int) -> None:
    assert thinning(rate, [length, length, 2 * length], 28) == steps
