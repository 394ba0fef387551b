"""`kairos generate` on a miniature: one clip, a file of jobs, resuming, failures, and requests that start nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_model import served_model

from kairos_env.cli import main as cli
from kairos_env.cli.clip_jobs import ClipJob, read_jobs
from kairos_env.world_model.published.prompts import NEGATIVE_PROMPT, PROMPT_PREFIX

pytest.importorskip("diffusers", reason="the video tokenizer of the miniature is diffusers'")

MINIATURE = ["generate", "--miniature", "4b-robot", "--frames", "5", "--height", "32", "--width", "48", "--steps", "2"]


def run(folder: Path, *words: str) -> int:
    return cli.main([*MINIATURE, "--out", str(folder / "out"), *words])


def write_jobs(folder: Path, jobs: Any) -> str:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return str(folder / "jobs.json")


def save_image(path: Path, shape: tuple[int, ...] = (32, 48, 3)) -> Path:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """What was written beside the clips, by the name of the job."""
    found = (folder / "out").glob("*-????????.json")
    return {path.name.rpartition("-")[0]: json.loads(path.read_text()) for path in found}


def test_one_clip_is_a_film_and_the_settings_that_made_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import av

    assert run(tmp_path, "--prompt", "Open the drawer!", "--seed", "3", "--teacache", "0.1") == 0
    (film,) = (tmp_path / "out").glob("*.mp4")
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 16
    assert np.stack(frames).shape == (5, 32, 48, 3)
    record = records(tmp_path)["open-the-drawer"]
    assert record["settings"]["prompt"] == "Open the drawer!" and record["settings"]["seed"] == 3
    assert record["settings"]["guidance"] == 5.0 and len(record["settings"]["sigmas"]) == 3
    assert record["model"]["video"]["dim"] == 64 and "torch" in record["machine"]["versions"]
    assert record["skipped_steps"] == 0
    out = capsys.readouterr().out
    assert "random weights in miniature: these clips are noise" in out
    assert "TeaCache skipped 0 of 2 steps" in out


def test_jobs_run_are_not_run_again_and_do_not_stop_at_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "start.png", (40, 40, 3))
    jobs: list[dict[str, Any]] = [
        {"name": "first", "prompt": "lift", "seed": 1},
        {"name": "broken", "prompt": "x" * 5000},  # more than the miniature's text encoder takes
        {"name": "last", "image": "start.png", "fit": "crop", "steps": 1, "guidance": 1, "negative_prompt": ""},
    ]
    path = write_jobs(tmp_path, jobs)
    assert run(tmp_path, "--jobs", path, "--negative-prompt", "dull") == 1
    captured = capsys.readouterr()
    assert "written: 2, already there: 0, failed: 1" in captured.out and "5000 bytes" in captured.err
    found = records(tmp_path)
    assert sorted(found) == ["first", "last"]
    # the command line says what a job leaves open
    assert found["first"]["settings"]["negative_prompt"] == "dull" and found["first"]["settings"]["steps"] == 2
    assert found["last"]["settings"] | {"mode": "i2v", "steps": 1, "fit": "crop"} == found["last"]["settings"]
    (failed,) = (tmp_path / "out").glob("*.failed.json")
    assert failed.name.startswith("broken-") and "5000 bytes" in json.loads(failed.read_text())["error"]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")}
    jobs[0]["seed"] = 2  # another clip under the same name
    jobs[1]["prompt"] = "short"
    assert run(tmp_path, "--jobs", write_jobs(tmp_path, jobs), "--negative-prompt", "dull") == 0
    assert "written: 2, already there: 1, failed: 0" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 4


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([{"prompt": "lift"}, {"promt": "push"}], "job 2 has an unknown key 'promt'; did you mean 'prompt'?"),
        ([{"prompt": "lift", "steps": "ten"}], "job 1: steps is 'ten', expected a whole number or null"),
        ([{"prompt": "lift", "seed": True}], "job 1: seed is True, expected a whole number"),
        ([{"prompt": "lift", "fit": "squeeze"}], "expected 'crop' or 'pad' or 'stretch' or null"),
        ([{"prompt": None}], "job 1: prompt is None, expected a text"),
        ([{"prompt": "lift"}, {"prompt": "lift", "frames": 6}], "job 2: frames 6 is not of the form 4 n + 1"),
        ([{"prompt": "lift"}, {"prompt": "lift", "seed": 0}], "jobs 1 and 2 are the same"),
        ([{"prompt": "lift", "name": "../clip"}], "name '../clip' must consist of letters"),
        ([{"prompt": "lift"}, {"image": "gone.png"}], "gone.png"),
        ([{"prompt": "lift"}, {"image": "alpha.png"}], "alpha.png has mode RGBA, expected RGB"),
        ([{"image": "jobs.json"}], "jobs.json is no image that can be read"),
        ([], "must hold a list of at least one object"),
        ({"prompt": "lift"}, "must hold a list of at least one object"),
    ],
)
def test_a_wrong_job_stops_all_before_the_first(
    tmp_path: Path, jobs: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "alpha.png", (32, 48, 4))
    assert run(tmp_path, "--jobs", write_jobs(tmp_path, jobs)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_jobs_that_are_no_json_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs.json").write_text("{")
    assert run(tmp_path, "--jobs", str(tmp_path / "jobs.json")) == 2
    assert "jobs.json is no JSON file" in capsys.readouterr().err


def test_what_to_run_must_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--prompt", "lift"]) == 2
    assert "give either --model FOLDER or --miniature RELEASE" in capsys.readouterr().err
    assert run(tmp_path) == 2
    assert "neither a prompt nor an image" in capsys.readouterr().err
    assert cli.main(["generate", "--miniature", "4b-robo", "--prompt", "lift"]) == 2
    assert "did you mean '4b-robot'" in capsys.readouterr().err
    assert cli.main(["generate", "--model", str(tmp_path), "--prompt", "lift"]) == 2
    assert "not a model folder" in capsys.readouterr().err


def test_a_folder_without_its_parts_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kairos_env.world_model.published.releases import miniature
    from kairos_env.world_model.published.world_action import WorldActionModel

    WorldActionModel.from_release(miniature("4b-robot", layers=4)).save_pretrained(tmp_path / "model")
    words = ["generate", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--prompt", "lift"]
    assert cli.main(words) == 2
    assert "comes without a video tokenizer; name one with --vae" in capsys.readouterr().err
    assert cli.main([*words, "--vae", "Wan2.1_VAE.pth"]) == 2
    assert "comes without a text encoder; name one with --text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_folder_holds_clips_of_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--prompt", "lift") == 0
    assert run(tmp_path, "--prompt", "lift", "--dtype", "float32") == 2
    assert 'dtype: "bfloat16" there, "float32" now' in capsys.readouterr().err


EXAMPLE = {
    "prompt": "The robotic arm sweeps a green cloth across the wooden surface.",
    "input_image": "assets/robot.png",
    "negative_prompt": "bright tones, static",
    "seed": 0,
    "tiled": True,
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "cfg_scale": 5,
    "use_prompt_rewriter": False,
    "output_dir": "output/ti2v",
}


def write_example(folder: Path, **changed: Any) -> str:
    """A checkout of the published repository with one example; its image is named from the root."""
    (folder / "examples").mkdir(exist_ok=True)
    (folder / "assets").mkdir(exist_ok=True)
    save_image(folder / "assets" / "robot.png", (60, 90, 3))
    (folder / "examples" / "example_ti2v.json").write_text(json.dumps(EXAMPLE | changed))
    return str(folder / "examples" / "example_ti2v.json")


def test_a_published_example_file_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_example(tmp_path)
    assert cli.main(["generate", "--miniature", "4b-robot", "--steps", "2", "--jobs", path]) == 0
    (record,) = (json.loads(file.read_text()) for file in Path("output/ti2v").glob("example_ti2v-*.json"))
    settings = record["settings"]
    assert (settings["mode"], settings["fit"], settings["frames"], settings["guidance"]) == ("ti2v", "stretch", 5, 5)
    assert settings["prompt"] == PROMPT_PREFIX + EXAMPLE["prompt"]  # type: ignore[operator]
    assert settings["negative_prompt"] == "bright tones, static" and settings["tiled"]
    # distilled weights do not look at guidance, and their examples name it all the same
    assert cli.main(["generate", "--miniature", "4b-robot-distilled", "--out", "distilled", "--jobs", path]) == 0
    (record,) = (json.loads(file.read_text()) for file in Path("distilled").glob("example_ti2v-*.json"))
    assert (record["settings"]["steps"], record["settings"]["guidance"]) == (4, 1.0)


def test_a_published_example_without_an_image_has_an_empty_one(tmp_path: Path) -> None:
    path = write_example(tmp_path, input_image="")
    (job,) = read_jobs(path, ClipJob()).jobs
    assert job.image is None and job.negative_prompt == "bright tones, static"
    with pytest.raises(ValueError, match=r"job 1 has an unknown key 'num_frame'; did you mean"):
        read_jobs(write_example(tmp_path, num_frame=5), ClipJob())


def test_prompt_prefix_and_negative_prompt_are_the_published_ones_unless_said_otherwise(tmp_path: Path) -> None:
    image = str(save_image(tmp_path / "start.png"))
    jobs = [
        {"name": "published", "prompt": "lift", "image": image},
        {"name": "own", "prompt": "lift", "image": image, "prompt_prefix": "", "negative_prompt": "dull"},
        {"name": "words", "prompt": "lift"},
        {"name": "free", "prompt": "lift", "guidance": 1},
    ]
    assert run(tmp_path, "--jobs", write_jobs(tmp_path, jobs)) == 0
    found = {name: record["settings"] for name, record in records(tmp_path).items()}
    assert found["published"]["prompt"] == PROMPT_PREFIX + "lift" and found["own"]["prompt"] == "lift"
    assert found["words"]["prompt"] == "lift"
    assert found["published"]["negative_prompt"] == found["words"]["negative_prompt"] == NEGATIVE_PROMPT
    assert (found["own"]["negative_prompt"], found["free"]["negative_prompt"]) == ("dull", "")


# several processes, rewritten prompts ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_make_the_film_of_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "Open the drawer!", "--dtype", "float32", "--device", "cpu"]
    assert cli.main([*MINIATURE, "--out", str(tmp_path / "one"), *words]) == 0
    assert cli.main([*MINIATURE, "--out", str(tmp_path / "two"), *words, "--nproc", "2"]) == 0
    assert "clips written: 1, already there: 0, failed: 0" in capfd.readouterr().out
    films = [decoded(next((tmp_path / name).glob("*.mp4"))) for name in ("one", "two")]
    assert np.abs(films[0].astype(int) - films[1]).mean() < 1  # a compressed film of noise
    assert cli.main([*MINIATURE, "--out", str(tmp_path / "two"), *words, "--nproc", "2"]) == 0
    assert "clips written: 0, already there: 1, failed: 0" in capfd.readouterr().out


def test_a_number_of_processes_that_cannot_share_a_clip_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "lift", "--device", "cpu"]
    assert run(tmp_path, *words, "--nproc", "5") == 2
    assert "5 processes cannot share '4b-robot-miniature' with 6 tokens in a latent frame: legal are 1, 2, 3" in (
        capsys.readouterr().err
    )
    assert run(tmp_path, *words, "--nproc", "8") == 2
    assert "legal with guidance are 2, 4, 6" in capsys.readouterr().err
    assert run(tmp_path, "--prompt", "lift", "--device", "cuda", "--nproc", "97") == 2
    assert "97 processes need a GPU each" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def decoded(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_prompts_are_rewritten_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [{"name": "plain", "prompt": "lift", "rewrite": False}, {"prompt": "wipe the table", "guidance": 1}]
    path = write_jobs(tmp_path, jobs)
    with served_model("A cloth wipes the table.") as (address, asked):
        words = ["--jobs", path, "--rewriter", address]
        assert run(tmp_path, *words) == 0
        assert len(asked) == 1 and asked[0]["model"] == "served-model"
        assert run(tmp_path, *words) == 0
        assert len(asked) == 1 and "already there: 2" in capsys.readouterr().out
    found = records(tmp_path)
    assert found["plain"]["settings"]["prompt"] == "lift"
    assert found["wipe-the-table"]["settings"]["prompt"] == "A cloth wipes the table."
    (kept,) = json.loads((tmp_path / "out" / "prompts.json").read_text()).values()
    assert kept == {"prompt": "wipe the table", "rewritten": "A cloth wipes the table."}
    assert run(tmp_path, "--prompt", "lift", "--rewrite", "true") == 2
    assert "name a model for it with --rewriter" in capsys.readouterr().err


def test_off_loading_gives_the_same_film_by_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "lift", "--device", "cpu"]
    for out, more in (("whole", []), ("offloaded", ["--offload"])):
        assert cli.main([*MINIATURE, "--out", str(tmp_path / out), *words, *more]) == 0
    whole, offloaded = (decoded(next((tmp_path / out).glob("*.mp4"))) for out in ("whole", "offloaded"))
    assert np.array_equal(whole, offloaded)
    assert run(tmp_path, *words, "--offload", "--nproc", "2") == 2
    assert "--offload is for one process" in capsys.readouterr().err
