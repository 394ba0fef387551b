"""The card of an exported dataset: what its README.md says."""

from __future__ import annotations

from collections.abc import Sequence

from kairos_env.datasets.card import field_table, hub_header
from kairos_env.datasets.lerobot.files import VERSION
from kairos_env.records import RobotSpec


def dataset_card(
    spec: RobotSpec,
    episodes: int,
    frames: int,
    fps: int,
    tasks: Sequence[str],
    models: Sequence[tuple[str, str]] | None,
) -> str:
    """Markdown with the header that the hub reads.

    Args:
        models: names and checksums of the weights of the models that imagined the episodes; None: recorded ones.
    """
    tags = ["LeRobot", "kairos", *(["imagined"] if models is not None else [])]
    files = ["config_name: default\n  data_files: data/*/*.parquet"]
    lines = hub_header({"task_categories": ["robotics"], "tags": tags, "configs": files})
    lines += [f"# {'Imagined' if models is not None else 'Recorded'} episodes of {spec.name}", ""]
    if models is not None:
        lines += [
            "**No robot and no simulator made these episodes.** A world model imagined them: frame 0 of each is a",
            "given observation; every later frame, state, reward and success is a prediction. `kairos.imagined` says",
            "so for every frame, `kairos.uncertainty` how far the model expects the frame to be off (root mean squared",
            "error of its latent, in standard deviations; 0 where nothing was imagined). The columns `kairos/...` of",
            "`meta/episodes` say where each episode comes from.",
            "",
            *(f"- model `{model}`, sha256 of its weights `{digest}`" for model, digest in models),
            "",
        ]
    lines += [
        f"{episodes} episodes, {frames} frames at {fps} a second, LeRobotDataset "
        f"{VERSION}. An episode of T decisions has T + 1",
        "frames; the last one only shows where it ended and repeats the last action.",
        "",
        *field_table(spec),
        "",
        "Tasks:",
        "",
    ]
    lines += [f"- {task or '(none given)'}" for task in tasks]
    return "\n".join(lines) + "\n"
