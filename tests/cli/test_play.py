"""`kairos play` serves one page on this machine, or says why not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kairos_env.cli import main as cli
from kairos_env.play.server import PlayServer


def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["play", "--port", str(port), "--out", str(tmp_path)]) == 2
    assert "in use" in capsys.readouterr().err


def test_the_address_is_told_until_ctrl_c(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []

    def serve(server: PlayServer, poll_interval: float) -> None:
        served.append(server.url)
        assert server.session.task == "push"
        raise KeyboardInterrupt

    monkeypatch.setattr(PlayServer, "serve_forever", serve)
    assert cli.main(["play", "--task", "push", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert served[0] in out and "stopped" in out
