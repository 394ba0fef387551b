"""A simulator in another process: answers, errors, deaths and hangs."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from kairos_env.sims.process import SimulatorCrashed, SimulatorError, SimulatorProcess, SimulatorTimeout

SERVER = """
import os, sys, time
import numpy as np
from kairos_env.sims.process import serve

class Fake:
    def echo(self, **values):
        print("a library that prints to standard output")
        return values
    def picture(self, size, value):
        return {"image": np.full((size, size, 3), value, np.uint8), "state": np.arange(7.0), "name": "camera"}
    def strided(self):
        return {"x": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]}
    def fail(self):
        raise KeyError("no such object")
    def strange(self):
        return {"value": object()}
    def hang(self):
        time.sleep(3600)
    def die(self, code):
        print("last words", file=sys.stderr, flush=True)
        os._exit(code)
    def modules(self):
        return {"kairos": getattr(sys.modules["kairos_env"], "__version__", None), "torch": "torch" in sys.modules}

serve(Fake())
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "fake_simulator.py").write_text(textwrap.dedent(SERVER))
    running = []

    def begin(**options):
        environment = {"PYTHONPATH": str(tmp_path)}
        running.append(SimulatorProcess(sys.executable, "fake_simulator", environment, **options))
        return running[-1]

    yield begin
    for process in running:
        process.close()


def alive(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read().split()[2]


def test_values_and_arrays_arrive_and_belong_to_the_caller(start):
    process = start()
    assert process.call("echo", a=1.5, b=[True, None, "ü"]).values == {"a": 1.5, "b": [True, None, "ü"]}
    first = process.call("picture", size=64, value=3)
    assert first.values == {"name": "camera"}
    assert first.arrays["image"].dtype == np.uint8 and (first.arrays["image"] == 3).all()
    np.testing.assert_array_equal(first.arrays["state"], np.arange(7.0))
    larger = process.call("picture", size=512, value=9)  # the shared memory has to grow
    assert larger.arrays["image"].shape == (512, 512, 3) and (larger.arrays["image"] == 9).all()
    assert (first.arrays["image"] == 3).all()
    again = process.call("picture", size=16, value=1)
    assert (again.arrays["image"] == 1).all() and (larger.arrays["image"] == 9).all()
    expected = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    np.testing.assert_array_equal(process.call("strided").arrays["x"], expected)


def test_numbers_are_exact(start):
    values = np.random.default_rng(0).normal(size=100).tolist()
    assert start().call("echo", values=values).values["values"] == values


def test_the_other_side_does_not_run_our_package(start):
    assert start().call("modules").values == {"kairos": None, "torch": False}


def test_an_exception_over_there_is_one_here_and_the_process_lives(start):
    process = start()
    with pytest.raises(SimulatorError, match="KeyError: 'no such object'") as caught:
        process.call("fail")
    assert caught.value.kind == "KeyError" and "in fail" in caught.value.__notes__[0]
    with pytest.raises(SimulatorError, match="not JSON serializable"):
        process.call("strange")
    with pytest.raises(SimulatorError, match="not a public method"):
        process.call("__class__")
    with pytest.raises(SimulatorError, match="no attribute 'fly'"):
        process.call("fly")
    assert process.call("echo", x=1).values == {"x": 1}


def test_a_death_is_named_with_the_last_words(start):
    process = start()
    with pytest.raises(SimulatorCrashed, match=r"died in 'die' \(exit code 7\).*last words"):
        try:
            process.call("die", code=7)
        except SimulatorCrashed as error:
            raise SimulatorCrashed(str(error).replace("\n", " ")) from error
    process = start()
    process.call("echo")
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(SimulatorCrashed, match="SIGKILL"):
        process.call("echo")


def test_a_hang_is_ended_in_time(start):
    process = start()
    process.call("echo")
    began = time.monotonic()
    with pytest.raises(SimulatorTimeout, match=r"'hang' within 0\.3 s"):
        process.call("hang", timeout_s=0.3)
    assert time.monotonic() - began < 5 and not alive(process.pid)


def test_requests_go_one_at_a_time(start):
    process = start()
    process.send("picture", size=4, value=1)
    with pytest.raises(RuntimeError, match="before the answer to 'picture'"):
        process.send("echo")
    process.receive()
    with pytest.raises(RuntimeError, match="no request"):
        process.receive()


def test_closing_ends_the_process_even_in_the_middle_of_a_request(start):
    process = start()
    process.call("echo")
    process.close()
    process.close()
    assert not alive(process.pid)
    process = start()
    process.call("echo")
    process.send("hang")
    process.close()
    assert not alive(process.pid)


def test_an_interpreter_that_is_not_there_is_named():
    with pytest.raises(SimulatorCrashed, match="cannot run /nowhere/python"):
        SimulatorProcess("/nowhere/python", "fake_simulator")


def test_a_module_that_is_not_there_is_named():
    process = SimulatorProcess(sys.executable, "no_such_simulator")
    with pytest.raises(SimulatorCrashed) as caught:
        process.call("echo")
    assert "No module named no_such_simulator" in str(caught.value)
    process.close()


def test_it_does_not_outlive_a_parent_that_was_killed(tmp_path):
    (tmp_path / "fake_simulator.py").write_text(textwrap.dedent(SERVER))
    script = f"""
import sys, time
from kairos_env.sims.process import SimulatorProcess
process = SimulatorProcess(sys.executable, "fake_simulator", {{"PYTHONPATH": {str(tmp_path)!r}}})
process.call("echo")
process.send("hang")
print(process.pid, flush=True)
time.sleep(3600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}") or open(f"/proc/{child}/stat").read().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {child} still runs 10 s after its parent was killed")
