"""The client: what it raises when there is no server or no answer, and that it stands alone."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from paths import ROOT
from serving import make_server, see, serving
from websockets.sync.server import serve

from kairos_env.policies.remote import server
from kairos_env.policies.remote.client import PolicyClient, ServerLost
from kairos_env.policies.remote.policy import message_of
from kairos_env.policies.remote.wire import pack


def test_no_server_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerLost, match=f"no policy server at ws://127.0.0.1:{port}"):
        PolicyClient(f"ws://127.0.0.1:{port}")
    with pytest.raises(ValueError, match="address like ws://"):
        PolicyClient("http://127.0.0.1")


def test_an_answer_that_does_not_come_in_time_ends_the_connection() -> None:
    with serving(make_server(seconds=0.5)) as url:
        client = PolicyClient(url, timeout=0.2)
        began = time.monotonic()
        with pytest.raises(ServerLost, match=r"did not answer within 0\.2 s"):
            client.decide(message_of(see()))
        assert time.monotonic() - began < 1.5
        assert not client.connected
        with pytest.raises(ServerLost, match="closed"):
            client.decide(message_of(see()))
        client.timeout = 5
        client.connect()
        assert client.decide(message_of(see())).shape == (4, 2)


@pytest.mark.parametrize("first", [pack({"protocol": 2}), pack({}), "who are you?"])
def test_another_protocol_is_said_before_anything_is_asked(first: bytes | str) -> None:
    with serve(lambda connection: connection.send(first), "127.0.0.1", 0) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(ServerLost, match="protocol"):
            PolicyClient(f"ws://127.0.0.1:{other.socket.getsockname()[1]}")
        other.shutdown()


def test_the_distribution_needs_nothing_of_kairos(tmp_path: Path) -> None:
    package = tmp_path / "kairos_client"
    package.mkdir()
    for file in (
        "client/kairos_client/__init__.py",
        *(f"kairos_env/policies/remote/{f}.py" for f in ("wire", "client")),
    ):
        (package / Path(file).name).write_text((ROOT / file).read_text("utf-8"), "utf-8")
    code = (
        "import sys, numpy, kairos_client\n"
        "with kairos_client.PolicyClient(sys.argv[1]) as client:\n"
        "    image = numpy.zeros((8, 8, 3), numpy.uint8)\n"
        "    seen = {'images': {'scene': image, 'wrist': image}, 'proprio': numpy.zeros(2, numpy.float32)}\n"
        "    print(client.decide(seen).shape, [m for m in sys.modules if m.startswith(('kairos_env', 'torch'))])"
    )
    with serving(make_server()) as url:
        done = subprocess.run(
            [sys.executable, "-c", code, url], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.stdout == "(4, 2) []\n", done.stderr


def test_a_client_that_computes_for_minutes_is_kept() -> None:
    """A simulator that holds its interpreter answers no pings; RoboTwin's first picture takes as long as one waits."""
    with serving(make_server()) as url:
        client = PolicyClient(url)
        assert client._connection.ping_interval is None  # its own time limits do
        client.close()
    assert server._BUSY_S >= 600
