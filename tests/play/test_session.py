"""Driving the imagined robot: the drive itself, its HTTP surface, and the page in a real browser."""

from __future__ import annotations

import base64
import dataclasses
import functools
import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kairos_env.env.env import WorldModelEnv
from kairos_env.play import session as play_session
from kairos_env.play.server import MAX_BODY, MAX_CONNECTIONS, PlayServer
from kairos_env.play.session import FUTURE_LENGTH, FUTURES, PlaySession, StaleFork, key_map
from kairos_env.policies.policy import example_observation
from kairos_env.records import Camera, Field, Observation, RobotSpec
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.model import WorldModel

PUSH = [0.05, -0.02, 0.0, 1.0]


@functools.cache
def model(cameras: tuple[str, ...] = ("scene",)) -> WorldModel:
    return WorldModel.from_preset("debug", make_spec(cameras), TASKS)


@functools.cache
def starts(cameras: tuple[str, ...] = ("scene",)) -> tuple[Observation, ...]:
    return tuple(example_observation(make_spec(cameras), seed) for seed in range(3))


def drive(folder: Path = Path("runs/play"), **options: Any) -> PlaySession:
    return PlaySession(model(), starts(), folder=folder, **options)


# The drive


def test_a_reset_shows_the_real_frame_itself_and_steps_are_imagined() -> None:
    session = drive()
    session.reset(start=1)
    assert np.array_equal(session.moments[0].images["scene"], starts()[1].images["scene"])
    session.step(PUSH)
    session.act()
    view = session.snapshot()
    assert (view["step"], view["actor"], view["can_undo"]) == (2, "policy", True)
    assert view["images"]["scene"].shape == (64, 64, 3) and view["images"]["scene"].dtype == np.uint8
    assert 0 <= view["success"] <= 1 and view["uncertainty"] >= 0
    assert len(view["history"]["success"]) == 3


def test_undo_returns_to_the_same_moment_and_the_same_action_to_the_same_future() -> None:
    session = drive()
    session.step(PUSH)
    before = session.moments[-1]
    session.step(PUSH)
    once = session.moments[-1].images["scene"]
    session.undo()
    assert session.moments[-1] is before
    session.step(PUSH)
    assert np.array_equal(session.moments[-1].images["scene"], once)


def test_undo_ends_at_the_start() -> None:
    session = drive()
    with pytest.raises(ValueError, match="nothing to undo"):
        session.undo()


def test_old_moments_give_up_their_state_and_keep_their_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play_session, "UNDO_LIMIT", 4)
    session = drive()
    for _ in range(9):
        session.step(PUSH)
    assert sum(m.state is not None for m in session.moments) == 4 and len(session.moments) == 10
    while session.can_undo:
        session.undo()
    assert session.snapshot()["step"] == 6
    session.step(PUSH)  # what is left is still a present


def test_same_seed_same_drive() -> None:
    frames = []
    for _ in range(2):
        session = drive(seed=7)
        session.act()
        frames.append(session.moments[-1].images["scene"])
    assert np.array_equal(*frames)


@pytest.mark.parametrize("kind", ["policy", "tasks"])
def test_futures_are_looked_into_without_going_there_and_one_can_be_taken(kind: str) -> None:
    session = drive()
    session.step(PUSH)
    futures = session.fork(kind)
    assert len(futures) == FUTURES and all(len(f["moments"]) == FUTURE_LENGTH for f in futures)
    assert session.snapshot()["step"] == 1
    session.take(2)
    assert session.snapshot()["step"] == 1 + FUTURE_LENGTH
    assert np.array_equal(session.moments[-1].images["scene"], futures[2]["moments"][-1]["images"]["scene"])
    session.undo()
    assert np.array_equal(session.moments[-1].images["scene"], futures[2]["moments"][-2]["images"]["scene"])


def test_samples_of_the_policy_differ_and_task_futures_are_named_by_instruction() -> None:
    session = drive()
    a, b, c = (f["moments"][0]["action"] for f in session.fork())
    assert a != b and b != c
    assert [f["label"] for f in session.fork("tasks")] == list(TASKS.values())[:3]


def test_a_future_is_stale_once_time_went_on() -> None:
    session = drive()
    session.fork()
    session.step(PUSH)
    with pytest.raises(StaleFork, match="fork"):
        session.take(0)


def test_another_instruction_goes_on_from_the_imagined_frame() -> None:
    session = drive()
    session.step(PUSH)
    session.instruct("lift")
    view = session.snapshot()
    assert (view["task"], view["step"], view["actor"]) == ("lift", 1, "instruction")
    session.act()
    assert session.snapshot()["step"] == 2
    session.undo()
    session.undo()
    assert (session.snapshot()["task"], session.snapshot()["step"]) == ("reach", 1), "undone like everything else"


def test_it_tells_how_far_to_trust_as_the_environment_does() -> None:
    """Until another instruction begins the memory anew: what was doubtful before it stays so."""
    trusting = WorldModel.from_preset("debug", make_spec(), TASKS)
    trusting.starts = starts()
    dark = [dataclasses.replace(o, images={k: v // 3 for k, v in o.images.items()}) for o in starts()]
    session, env = PlaySession(trusting, dark), WorldModelEnv(trusting, start=dark, task="reach")
    session.reset(start=1)
    told = [env.reset(seed=0, options={"start": 1})[1]]
    shown = [session.snapshot()]
    for _ in range(2):
        session.step(PUSH)
        shown.append(session.snapshot())
        told.append(env.step(np.array(PUSH, np.float32))[4])
    assert session.describe()["metric"] and told[0]["familiarity"] < 1
    for key in ("uncertainty", "trust", "familiarity"):
        assert [view[key] for view in shown] == pytest.approx([info[key] for info in told], rel=1e-3, abs=1e-5)
    session.instruct("push")
    again = session.snapshot()
    assert again["uncertainty"] >= shown[-1]["uncertainty"] and again["trust"] <= shown[-1]["trust"]
    assert again["familiarity"] == shown[-1]["familiarity"] and len(again["history"]["trust"]) == 4
    session.reset()
    assert session.snapshot()["uncertainty"] < again["uncertainty"]


def test_a_robot_with_two_cameras_is_driven_alike(tmp_path: Path) -> None:
    cameras = ("scene", "wrist")
    session = PlaySession(model(cameras), starts(cameras), folder=tmp_path)
    session.step(PUSH)
    assert set(session.snapshot()["images"]) == set(cameras)
    assert session.save().stat().st_size > 0


def test_saved_video_plays_at_the_robots_pace(tmp_path: Path) -> None:
    import av

    session = drive(tmp_path)
    for _ in range(4):
        session.step(PUSH)
    path = session.save()
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert float(stream.average_rate or 0) == 5.0
        assert sum(1 for _ in film.decode(stream)) == 5
        assert stream.width >= 256
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_keys_move_along_the_screen() -> None:
    keys = key_map(make_spec())
    assert keys["KeyW"] == keys["ArrowUp"] == (0, -1.0) and keys["KeyD"] == (1, 1.0) and keys["KeyE"] == (2, 1.0)
    joints = RobotSpec("arm", (Camera("c", 8, 8),), (Field("q", -1, 1, "rad"),), (Field("q", -1, 1, "rad"),), 5.0)
    assert key_map(joints) == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s.step([0.0, 0.0]), "shape"),
        (lambda s: s.step([[0.0] * 4]), "one action"),
        (lambda s: s.step([0.0, 0.0, float("nan"), 0.0]), "non-finite"),
        (lambda s: s.reset(task="juggle"), "reach, push, lift"),
        (lambda s: s.reset(task="push", start=99), "0 ... 2"),
        (lambda s: s.instruct("juggle"), "reach, push, lift"),
        (lambda s: s.fork("dice"), "legal are 'policy' and 'tasks'"),
    ],
)
def test_wrong_wishes_say_what_is_legal_and_change_nothing(wrong: Callable[[PlaySession], Any], message: str) -> None:
    session = drive()
    session.step(PUSH)
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong(session)
    assert session.snapshot()["step"] == 1 and session.task == "reach"


def test_a_model_without_starts_says_where_else_to_begin() -> None:
    with pytest.raises(ValueError, match="ships no start"):
        PlaySession(model())


def test_the_model_of_another_robot_is_driven_alike(tmp_path: Path) -> None:
    libero = WorldModel.from_pretrained("kairos-libero")
    session = PlaySession(libero, folder=tmp_path)
    session.act()
    session.step([0.0] * libero.spec.action_dim)
    assert len(session.fork("tasks")) == FUTURES and set(session.snapshot()["images"]) == {"agentview", "eye_in_hand"}
    session.take(1)
    assert session.snapshot()["step"] == 2 + FUTURE_LENGTH and session.save().exists()


# The HTTP surface


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PlayServer]:
    with PlayServer(lambda: drive(tmp_path)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


JSON = {"Content-Type": "application/json"}


def ask(
    server: PlayServer, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own; ``path`` is relative to the key unless it begins with a slash."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        where = path if path.startswith("/") else f"/{server.key}/{path}"
        connection.request(method, where, body, headers if headers is not None else JSON)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def post(server: PlayServer, verb: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    raw = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
    status, _, content = ask(
        server, "POST", f"api/{verb}", raw, JSON | {k.replace("_", "-"): v for k, v in headers.items()}
    )
    return status, json.loads(content)


def test_it_listens_on_loopback_only_and_every_run_has_its_own_key(server: PlayServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.key) >= 32
    with PlayServer(drive) as other:
        assert other.key != server.key


def test_the_page_is_whole_and_its_policy_lets_nothing_else_in(server: PlayServer) -> None:
    status, headers, page = ask(server, "GET", "")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    (nonce,) = set(re.findall(rb'nonce="([^"]+)"', page))
    assert policy.count(f"'nonce-{nonce.decode()}'") == 2
    assert not re.search(rb"https?://|src=\"//|\son\w+=|\sstyle=", page), "no foreign address, no inline handler"
    assert ask(server, "GET", "")[2] != page, "a new nonce each time"


def test_the_drive_over_http(server: PlayServer) -> None:
    status, view = post(server, "session")
    assert status == 200 and view["robot"]["name"] == "panda-tabletop" and view["robot"]["tasks"] == TASKS
    status, view = post(server, "step", {"action": PUSH})
    assert (status, view["step"]) == (200, 1)
    prefix, _, data = view["images"]["scene"].partition(",")
    from PIL import Image

    assert prefix == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)
    status, view = post(server, "fork", {"kind": "tasks"})
    assert status == 200 and len(view["futures"]) == FUTURES
    assert post(server, "take", {"future": 1})[1]["step"] == 1 + FUTURE_LENGTH
    assert post(server, "undo")[1]["step"] == FUTURE_LENGTH
    assert Path(post(server, "save")[1]["saved"]).is_file()
    assert post(server, "reset", {"task": "push", "start": 0})[1]["task"] == "push"


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/api/session", "//api/session", "/%2e%2e/", "*", "http://x/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_the_key_nothing_answers(server: PlayServer, method: str, path: str) -> None:
    status, _, content = ask(server, method, path if path.startswith("/") else f"/{path}", b"{}")
    assert status == 403 and b"key" in content


@pytest.mark.parametrize("path", ["page.html", "../server.py", "..%2fserver.py", "api/session", "static/x"])
def test_there_is_one_page_and_no_file(server: PlayServer, path: str) -> None:
    assert ask(server, "GET", path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil:{port}", ""]
)
def test_a_foreign_host_name_is_refused(server: PlayServer, host: str) -> None:
    status, _ = post(server, "session", Host=host.format(port=server.server_port))
    assert status == 403
    assert ask(server, "GET", "", None, {"Host": host.format(port=server.server_port)})[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_a_foreign_origin_is_refused(server: PlayServer, origin: str) -> None:
    assert post(server, "session", Origin=origin.format(port=server.server_port))[0] == 403
    assert post(server, "session", Sec_Fetch_Site="cross-site")[0] == 403


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_its_own_origin_is_welcome(server: PlayServer, name: str) -> None:
    here = f"{name}:{server.server_port}"
    assert post(server, "session", Host=here, Origin=f"http://{here}", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("step", b"{"),
        ("step", b"\xff\xfe"),
        ("step", b"[" * (MAX_BODY - 1)),
        ("step", b"[1, 2, 3, 4]"),
        ("step", b'{"action": [NaN, 0, 0, 0]}'),
        ("step", b'{"action": [1e999, 0, 0, 0]}'),
        ("step", b'{"action": [true, 0, 0, 0]}'),
        ("step", b'{"action": ["0", 0, 0, 0]}'),
        ("step", b'{"action": [0, 0, 0]}'),
        ("step", b'{"action": null}'),
        ("step", b"{}"),
        ("step", b'{"action": [0, 0, 0, 0], "speed": 2}'),
        ("reset", b'{"start": true}'),
        ("reset", b'{"start": -1}'),
        ("reset", b'{"start": 99999999999999999999}'),
        ("reset", b'{"task": 3}'),
        ("take", b'{"future": 1.5}'),
        ("fork", b'{"kind": ""}'),
        ("undo", b"{}"),
    ],
)
def test_bad_requests_are_answered_and_change_nothing(server: PlayServer, verb: str, body: bytes) -> None:
    status, answer = post(server, verb, body)
    assert status == 400 and answer["error"]
    assert post(server, "session")[1]["step"] == 0


def test_a_stale_future_is_a_conflict(server: PlayServer) -> None:
    assert post(server, "take", {"future": 0})[0] == 409


def test_sizes_kinds_and_verbs_are_limited(server: PlayServer) -> None:
    assert post(server, "step", b" " * (MAX_BODY + 1))[0] == 413
    assert post(server, "explode")[0] == 404
    assert post(server, "__init__")[0] == 404
    assert ask(server, "POST", "api/step", b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert ask(server, "PUT", "api/step", b"{}")[0] == 501
    chunked = {"Transfer-Encoding": "chunked", **JSON}
    assert ask(server, "POST", "api/step", b"2\r\n{}\r\n0\r\n\r\n", chunked)[0] == 411
    assert post(server, "step", b"{}", Content_Length="-1")[0] == 411
    assert post(server, "step", b"{}", Content_Length="9" * 5000)[0] == 413


def test_one_connection_carries_the_drive_and_survives_nothing_wrong(server: PlayServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.connect()
    mine = connection.sock
    for step in range(1, 4):
        connection.request("POST", f"/{server.key}/api/step", json.dumps({"action": PUSH}), JSON)
        assert json.loads(connection.getresponse().read())["step"] == step
    assert connection.sock is mine
    connection.request("POST", f"/{server.key}/api/step", b"{", JSON)
    answer = connection.getresponse()
    assert answer.status == 400 and answer.getheader("Connection") == "close"
    connection.close()


def test_requests_at_the_same_time_take_turns(server: PlayServer) -> None:
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(post(server, "step", {"action": PUSH})[1]["step"]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [1, 2, 3, 4, 5, 6]


def test_a_broken_model_is_an_answer_without_details(
    server: PlayServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("weights melted")

    monkeypatch.setattr(server.session, "act", broken)
    status, answer = post(server, "act")
    assert status == 500 and "melted" not in json.dumps(answer)
    assert "weights melted" in capsys.readouterr().err
    assert post(server, "session")[0] == 200


def test_slow_connections_shut_nobody_out(server: PlayServer) -> None:
    """Of those that owe a request the one that is silent for longest gives way, and never more are open."""
    slow = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(MAX_CONNECTIONS)]
    try:
        for connection in slow:
            connection.sendall(b"POST /")  # and nothing more
        time.sleep(0.3)
        began = time.monotonic()
        assert post(server, "session")[0] == 200 and time.monotonic() - began < 5
        assert slow[0].recv(1) == b""
        slow[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            slow[-1].recv(1)
        assert [post(server, "session")[0] for _ in range(3)] == [200] * 3
    finally:
        for connection in slow:
            connection.close()
    assert post(server, "session")[0] == 200


# The page, in a browser

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromedriver") and shutil.which("chromium")),
    reason="needs Chromium and its driver: apt-get install -y chromium chromium-driver",
)


class Browser:
    """The few words of WebDriver that this test needs."""

    def __init__(self, profile: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            ["chromedriver", f"--port={self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(200):
            try:
                self.ask("GET", "/status")
                break
            except OSError:
                time.sleep(0.05)
        flags = [
            "headless",
            "no-sandbox",
            "disable-gpu",
            "no-first-run",
            "disable-background-networking",
            "disable-sync",
        ]
        flags += ["disable-quic", "disable-component-update", "window-size=1180,900", f"user-data-dir={profile}"]
        options = {"args": [f"--{flag}" for flag in flags]}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self.session = f"/session/{self.ask('POST', '/session', {'capabilities': wanted})['sessionId']}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            JSON,
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self.ask("POST", f"{self.session}/url", {"url": url})

    def run(self, script: str) -> Any:
        return self.ask("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def key(self, value: str, until: str = "true") -> None:
        """Presses a key and lets it go once ``until`` holds on the page."""
        for move in ("keyDown", "keyUp"):
            actions = [{"type": move, "value": value}]
            self.ask("POST", f"{self.session}/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})
            if move == "keyDown":
                self.wait(until)

    def wait(self, condition: str) -> None:
        for _ in range(1200):  # a minute: the machine may be busy
            if self.run(f"return Boolean({condition})"):
                return
            time.sleep(0.05)
        raise AssertionError(
            f"the page never reached: {condition}; it says {self.run('return document.body.innerText')!r}"
        )

    def steps(self) -> int:
        """The step counter, once no key is down and no request is under way."""
        script = """const done = arguments[0];
            (async () => {
              let last;
              do { last = queue; await last; await new Promise(go => setTimeout(go, 50)); }
              while (last !== queue || held.size || tapped.size);
              done(+document.getElementById('step').textContent);
            })();"""
        return int(self.ask("POST", f"{self.session}/execute/async", {"script": script, "args": []}))

    def log(self) -> list[Any]:
        return self.ask("POST", f"{self.session}/se/log", {"type": "browser"})

    def close(self) -> None:
        try:
            self.ask("DELETE", self.session)
        finally:
            self.process.terminate()
            self.process.wait(timeout=20)


@needs_browser
def test_the_page_drives_with_keys_and_buttons(server: PlayServer, tmp_path: Path) -> None:
    browser = Browser(tmp_path / "profile")
    step = "+document.getElementById('step').textContent"
    try:
        browser.open(server.url)
        browser.wait("robot && document.getElementById('view-scene').naturalWidth === 64")
        browser.key("w", until=f"{step} >= 1")
        driven = browser.steps()
        assert browser.run("return now.action[0]") == pytest.approx(-0.05)
        assert browser.run("return document.getElementById('o-uncertainty').textContent").endswith("cm")
        assert browser.run("return document.getElementById('o-trust').textContent") != ""
        browser.key(" ")
        browser.wait(f"{step} === {driven + 1} && now.action[3] === 1")
        browser.key("z")
        browser.wait(f"{step} === {driven}")
        browser.key("d", until=f"{step} >= {driven + 3}")
        browser.run("document.getElementById('policy').click()")
        browser.wait("now.actor === 'policy'")
        browser.key("f")
        browser.wait("document.querySelectorAll('#futures img').length === 3")
        before = browser.steps()
        browser.run("document.querySelectorAll('#futures button')[1].click()")
        browser.wait(f"{step} === {before + FUTURE_LENGTH}")
        browser.run("document.getElementById('save').click()")
        browser.wait("document.getElementById('say').textContent.includes('.mp4')")
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("return [...document.querySelectorAll('img')].every(i => i.alt)")
        assert browser.log() == [], "nothing refused by the content policy, no script error"
    finally:
        browser.close()
