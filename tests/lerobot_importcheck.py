"""Does Kairos read LeRobot datasets as LeRobot does, every number and every pixel? Two Pythons::

    python tests/lerobot_importcheck.py prepare FOLDER          with Kairos: datasets of layouts v3.0 and v2.1
    LEROBOT/python tests/lerobot_importcheck.py read FOLDER     with LeRobot: writes its own, converts, reads all
    python tests/lerobot_importcheck.py compare FOLDER          with Kairos: reads them too and compares

The last step prints a line for every dataset and fails at the first difference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("video", "image")
FPS = 10


def prepare(folder: Path) -> None:
    """The sample episodes as arrays, and in both layouts, one copy of v2.1 to be converted."""
    from lerobot_layouts import sample, write_v2, write_v3

    raw = sample()
    flat = {key: np.concatenate(parts) for key, parts in (raw.columns | raw.images).items()}
    folder.mkdir(parents=True)
    np.savez(folder / "raw.npz", lengths=np.array(raw.lengths), tasks=np.array(raw.tasks), **flat)
    for kind in KINDS:
        write_v3(folder / f"v30-{kind}", sample(video=kind == "video"))
        write_v2(folder / f"v21-{kind}", sample(video=kind == "video"))


def read(folder: Path) -> None:
    """Writes the episodes with LeRobot, converts v2.1 with LeRobot, and saves what LeRobot reads of all."""
    for kind in KINDS:
        _write_with_lerobot(folder, kind)
        _convert(folder / f"v21-{kind}")  # the original stays as <name>_old
    for name in ("lerobot", "v30", "v21"):
        for kind in KINDS:
            _read_with_lerobot(folder / f"{name}-{kind}", folder / f"{name}-{kind}.npz")


def compare(folder: Path) -> None:
    """Every episode, and windows of it, against what LeRobot read."""
    for kind in KINDS:
        for name in (f"lerobot-{kind}", f"v30-{kind}", f"v21-{kind}"):
            truth = np.load(folder / f"{name}.npz", allow_pickle=False)
            print(f"{name}: {_compare(folder / name, truth)} frames equal to what LeRobot reads", flush=True)
            if name.startswith("v21"):
                count = _compare(folder / f"{name}_old", truth)
                print(f"{name} before its conversion: {count} frames equal to what LeRobot reads after it", flush=True)


def _write_with_lerobot(folder: Path, kind: str) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    raw = np.load(folder / "raw.npz", allow_pickle=False)
    features: dict[str, dict[str, Any]] = {}
    for key in raw.files:
        shape = raw[key].shape[1:] or (1,)
        if key.startswith("observation.images."):
            features[key] = {"dtype": kind, "shape": shape, "names": ["height", "width", "channels"]}
        elif key not in ("lengths", "tasks"):
            features[key] = {"dtype": raw[key].dtype.name, "shape": shape, "names": None}
    dataset = LeRobotDataset.create(
        "me/sample", FPS, features, root=folder / f"lerobot-{kind}", robot_type="odd_arm", use_videos=kind == "video"
    )
    at = 0
    for episode, length in enumerate(raw["lengths"]):
        for t in range(at, at + length):
            frame = {key: raw[key][t] if raw[key].ndim > 1 else raw[key][t : t + 1] for key in features}
            dataset.add_frame(frame | {"task": str(raw["tasks"][episode % len(raw["tasks"])])})
        dataset.save_episode(parallel_encoding=False)
        at += length
    dataset.finalize()


def _convert(root: Path) -> None:
    try:
        from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset
    except ImportError:  # before 0.5 it was elsewhere, and root was the folder of the datasets
        from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

        convert_dataset(root.name, root=root.parent, push_to_hub=False)
    else:
        convert_dataset("me/sample", root=root, push_to_hub=False)


def _read_with_lerobot(root: Path, out: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("me/sample", root=root, video_backend="pyav")
    items = [dataset[i] for i in range(len(dataset))]
    columns = {}
    for key in items[0]:
        if key == "task":
            columns[key] = np.array([item[key] for item in items])
            continue
        values = np.stack([item[key].numpy() for item in items])
        if "images" in key:  # float (3, H, W) in [0, 1]
            values = np.round(values * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        columns[key] = values
    np.savez(out, **columns)


def _compare(root: Path, truth: Any) -> int:
    from kairos_env.datasets.lerobot.reader import LeRobotData

    data = LeRobotData(root)
    assert data.broken == {}
    assert len(data) == len(np.unique(truth["episode_index"]))
    mapping = data.mapping
    for index, episode in enumerate(data):
        own = truth["episode_index"] == data.stored[index].index
        frames = int(own.sum())
        assert len(episode) == frames - 1
        for scalars, values in ((mapping.proprio, episode.proprio), (mapping.action, episode.actions)):
            for column, scalar in enumerate(scalars):
                want = truth[scalar.feature][own].reshape(frames, -1)[:, scalar.index]
                np.testing.assert_array_equal(values[:, column], want[: len(values)])
        assert episode.instruction == str(truth["task"][own][0])
        assert episode.success.tolist() == [False] * (frames - 2) + [True]
        assert episode.rewards.tolist() == [0.0] * (frames - 2) + [1.0]
        for camera in mapping.cameras:
            want = truth[camera.feature][own]
            np.testing.assert_array_equal(episode.images[camera.name], want)
            for start in range(frames):
                window = data.window(index, start, min(3, frames - start), [camera.name])
                np.testing.assert_array_equal(window.images[camera.name], want[start : start + 3])
    stored, found = data.meta.statistics(), data.statistics()
    for key in found:
        assert stored[key].count == found[key].count
        for name in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(getattr(stored[key], name), getattr(found[key], name), rtol=1e-4, atol=1e-5)
    return len(truth["episode_index"])


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    steps = {"prepare": prepare, "read": read, "compare": compare}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=steps)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    steps[args.step](args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
