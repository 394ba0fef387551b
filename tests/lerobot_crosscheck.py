"""Does the LeRobot library read what Kairos writes, frame for frame? Three steps, two Pythons::

    python tests/lerobot_crosscheck.py write FOLDER          with Kairos: records, imagines, exports
    LEROBOT/python tests/lerobot_crosscheck.py read FOLDER   with LeRobot: loads it and compares
    python tests/lerobot_crosscheck.py import FOLDER         with Kairos: reads it back and compares

Each step prints a line for every dataset and ends with 1 if one of them is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# The worst frame of 64 x 64 pixels, in decibels: 4:2:0 blurs the colours of a small picture.
LEAST_PSNR = {"h264": 30.0, "h264_444": 42.0, "png": float("inf")}
CAMERA = "observation.images.scene"


def write(folder: Path) -> bool:
    """Records in robosuite and imagines; the same episodes in HDF5, and as arrays, are the truth."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from kairos_env.collect.export import ExportConfig, imagined_episodes
    from kairos_env.collect.recorder import RecordConfig, record
    from kairos_env.datasets.hdf5.recorded import EpisodeFile, EpisodeWriter
    from kairos_env.datasets.lerobot.writer import LeRobotWriter

    record(RecordConfig(out=str(folder / "truth/recorded"), episodes=4, workers=1, decisions=12), progress=False)
    recorded = EpisodeFile(folder / "truth/recorded")
    (folder / "truth/imagined").mkdir()
    pairs = list(imagined_episodes(ExportConfig(out="", imagine=3, decisions=8)))
    with EpisodeWriter(folder / "truth/imagined/episodes.hdf5", recorded.spec) as file:
        for episode, _ in pairs:
            file.add(episode)
    for kind, episodes in (("recorded", [(e, {}) for e in recorded]), ("imagined", pairs)):
        np.savez(folder / f"truth/{kind}.npz", **_rows([episode for episode, _ in episodes]))
        for images in LEAST_PSNR:
            target = folder / f"{kind}-{images}"
            with LeRobotWriter(target, recorded.spec, images=images, imagined=kind == "imagined") as writer:
                for episode, provenance in episodes:
                    writer.add(episode, provenance)
            print(f"wrote {target.name}: {writer.episodes} episodes, {writer.frames} frames")
    return True


def read(folder: Path) -> bool:
    """Loads every dataset with LeRobot, by every decoder that there is, and looks at every row."""
    import lerobot
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    fine = True
    for path, kind, images in _datasets(folder):
        truth = np.load(folder / f"truth/{kind}.npz")
        for backend in ("pyav", "torchcodec") if images != "png" else ("pyav",):
            data = LeRobotDataset("local/crosscheck", root=path, video_backend=backend)
            batches = list(DataLoader(data, batch_size=7))
            found = {
                key: np.concatenate([b[key].numpy() for b in batches]) for key in truth if key not in (CAMERA, "task")
            }
            frames = np.concatenate([b[CAMERA].numpy() for b in batches])
            found[CAMERA] = (frames * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
            found["task"] = np.array([text for b in batches for text in b["task"]])
            wrong = _differing(found, truth)
            if data.meta.robot_type.endswith("-imagined") != (kind == "imagined"):
                wrong.append("robot_type")
            if not np.allclose(data.meta.stats["action"]["mean"], truth["action"].astype(np.float64).mean(0)):
                wrong.append("statistics")
            # windows of time, and a part of the episodes
            data = LeRobotDataset(
                "local/crosscheck",
                root=path,
                episodes=[1, 2],
                delta_timestamps={"action": [0, 0.2]},
                video_backend=backend,
            )
            first = int((truth["episode_index"] < 1).sum())
            if not np.array_equal(data[0]["action"].numpy(), truth["action"][first : first + 2]):
                wrong.append("delta_timestamps")
            fine &= _report(
                f"LeRobot {lerobot.__version__}, {backend}", path, found[CAMERA], truth[CAMERA], images, wrong
            )
    return fine


def import_(folder: Path) -> bool:
    """Reads every dataset with Kairos's importer and compares it with the HDF5 episodes."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from kairos_env.datasets.hdf5.recorded import EpisodeFile
    from kairos_env.datasets.lerobot.reader import LeRobotData

    fine = True
    for path, kind, images in _datasets(folder):
        before, after = EpisodeFile(folder / "truth" / kind), LeRobotData(path)
        wrong = ["spec"] if before.spec != after.spec or len(before) != len(after) else []
        for one, other in zip(before, after, strict=True):
            for name in ("proprio", "actions", "rewards", "success"):
                wrong += _unequal(name, getattr(one, name), getattr(other, name))
            wrong += ["labels"] if set(one.labels) != set(other.labels) else []
            for name in one.labels:
                wrong += _unequal(name, one.labels[name], other.labels[name])
            for name in ("task", "instruction", "source", "seed", "initial_state"):
                wrong += [name] if getattr(one, name) != getattr(other, name) else []
        pixels = [np.concatenate([e.images["scene"] for e in episodes]) for episodes in (after, before)]
        fine &= _report("Kairos", path, pixels[0], pixels[1], images, wrong)
    return fine


def _rows(episodes: list[Any]) -> dict[str, np.ndarray]:
    """LeRobot's features of all rows, spelt out."""
    rows: dict[str, list[Any]] = {}
    for index, episode in enumerate(episodes):
        steps = len(episode)
        for t in range(steps + 1):
            decided = min(t, steps - 1)
            row = {
                CAMERA: episode.images["scene"][t],
                "observation.state": episode.proprio[t],
                "action": episode.actions[decided],
                "next.reward": episode.rewards[t] if t < steps else np.float32(0),
                "next.success": episode.success[decided],
                "next.done": decided == steps - 1,
                "timestamp": np.float32(t / 5),
                "frame_index": t,
                "episode_index": index,
                "index": len(rows.get("index", [])),
                "task": episode.instruction,
            }
            for name, label in episode.labels.items():
                row[f"kairos.{name}"] = label[t if len(label) == steps + 1 else decided]
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in rows.items()}


def _datasets(folder: Path) -> Iterator[tuple[Path, str, str]]:
    for kind in ("recorded", "imagined"):
        for images in LEAST_PSNR:
            yield folder / f"{kind}-{images}", kind, images


def _differing(found: dict[str, np.ndarray], truth: Any) -> list[str]:
    """Features that are not bit-equal; pictures are judged by `_report`."""
    return [word for key in truth if key != CAMERA for word in _unequal(key, truth[key], found[key])]


def _unequal(name: str, one: np.ndarray, other: np.ndarray) -> list[str]:
    return [] if one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes() else [name]


def _report(who: str, path: Path, found: np.ndarray, truth: np.ndarray, images: str, wrong: list[str]) -> bool:
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(255**2 / np.square(found.astype(np.float64) - truth).mean((1, 2, 3)))
    if not psnr.min() >= LEAST_PSNR[images]:
        wrong.append("pictures")
    numbers = f"WRONG: {', '.join(dict.fromkeys(wrong))}" if wrong else "numbers and texts bit-equal"
    pictures = (
        "pictures bit-equal" if np.array_equal(found, truth) else f"PSNR {psnr.mean():.1f} dB, worst {psnr.min():.1f}"
    )
    print(f"{who:<28} {path.name:<18} {len(truth)} frames, {pictures}; {numbers}")
    return not wrong


STEPS: dict[str, Callable[[Path], bool]] = {"write": write, "read": read, "import": import_}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("folder", type=Path, help="for write: a new or empty one")
    arguments = parser.parse_args()
    sys.exit(0 if STEPS[arguments.step](arguments.folder) else 1)
