from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from point_simulator import SPEC, Point

from kairos_env.policies.make import check_name, known_instructions, make_policy, model_digest, parse_name, weights_of
from kairos_env.records import SpecMismatch


def test_names_take_options_and_noise() -> None:
    options = {"horizon": 10, "warm_start": False}
    assert parse_name("cem(horizon=10;warm_start=False)+noise=0.5") == ("cem", options, 0.5)
    assert parse_name("a.b:make(x=text)") == ("a.b:make", {"x": "text"}, 0.0)
    for bad in ("policy+", "cem(horizon)", "cem(", "what"):
        with pytest.raises(ValueError, match="policy|option"):
            parse_name(bad)


def test_a_model_of_another_robot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        spec = dataclasses.replace(SPEC, control_rate_hz=10.0)

    monkeypatch.setattr("kairos_env.policies.make.load_model", lambda *_: Model())
    with pytest.raises(SpecMismatch, match="control_rate_hz: 10.0 != 5.0"):
        make_policy("policy", Point())


def test_a_digest_knows_other_weights(tmp_path: Path) -> None:
    assert model_digest(str(tmp_path)) == ""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = model_digest(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert first and model_digest(str(tmp_path)) != first


def test_weights_are_named_where_a_policy_has_them() -> None:
    digest = model_digest("kairos-tiny")
    assert len(digest) == 16, "a bundled model"
    assert weights_of("cem(horizon=2)", "kairos-tiny", "state-model") == f"kairos-tiny {digest}"
    assert weights_of("state_cem", "kairos-tiny", "state-model") == f"state-model {model_digest('state-model')}"
    assert weights_of("expert+noise=1", "kairos-tiny", "state-model") == ""


@pytest.mark.parametrize(
    "name",
    [
        "random(spread=1)",
        "expert",
        "policy(steps=2;execute=4;task=push)",
        "best_of_n(n=4;samples=2)",
        "cem(horizon=3;deadline=0.5)",
        "cem(proposals=8;uncertainty_penalty=0.2;samples=2;risk=1.0)",
        "mppi(temperature=1)",
        "random_shooting(population=9)",
        "state_cem(elites=2)",
        "4b(statistics=a.json;mode=joint)",
        "replay(path=runs)",
        "point_simulator:half_blind(skill=2)",
    ],
)
def test_every_kind_of_policy_knows_its_options(name: str) -> None:
    check_name(name)
    base = parse_name(name)[0]
    with pytest.raises(ValueError, match="has no option 'horzon'"):
        check_name(f"{base}(horzon=1)")


def test_a_model_says_which_tasks_it_knows() -> None:
    assert "lift the red cube" in known_instructions("policy", "kairos-tiny", "state-model")
    assert "lift the red cube" in known_instructions("state_cem", "kairos-tiny", "state-model")
    assert known_instructions("expert", "kairos-tiny", "state-model") == []


def test_an_option_that_is_needed_is_asked_for() -> None:
    for name, option in (("replay", "path"), ("4b", "statistics")):
        with pytest.raises(ValueError, match=f"needs the option {option}"):
            check_name(name)
