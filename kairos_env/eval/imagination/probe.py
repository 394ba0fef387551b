"""An independent reader of positions from pictures: gripper, its opening, cube, and whether the cube is in view.

The world model must not mark its own work, so imagined frames are measured by a small network that was
trained on real frames only and shares nothing with it. Its error on real frames that it has not seen is
the floor below which no measured error means anything; it is kept with the weights and printed with
every result.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from kairos_env.datasets.layouts import open_recording
from kairos_env.datasets.recording import Recording
from kairos_env.eval.imagination.image_metrics import VISIBLE_PIXELS, red_pixels
from kairos_env.records import Array, Episode, RobotSpec
from kairos_env.runs import describe_machine, write_bytes, write_text

_WEIGHTS, _CARD = "probe.safetensors", "probe.json"
_CENTRE = (0.0, 0.0, 0.08)  # of the workspace [m]; outputs are in units of _REACH around it
_REACH = 0.1


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of the training of a probe.

    Args:
        data: recorded episodes with the label ``object_position``: file or folder.
        output: the folder for weights and card.
        camera: whose pictures it reads.
        steps: of gradient descent.
        batch: frames a step.
        learning_rate: at the start; it falls to zero along a cosine.
        max_frames: at most so many frames are kept in memory, spread over all episodes.
        held_out: share of the episodes that are only measured.
        seed: of initial weights, batches and noise.
    """

    data: str = "data"
    output: str = "runs/probe"
    camera: str = "scene"
    steps: int = 3000
    batch: int = 40
    learning_rate: float = 2e-3
    max_frames: int = 40_000
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share in (0, 1), got {self.held_out}")


@dataclass(frozen=True)
class Reading:
    """Positions that the probe reads in (...) pictures.

    Args:
        gripper: (..., 3) float32, metres, in the frame of the robot's proprioception.
        cube: (..., 3) float32, metres; a guess where the cube is not in view.
        cube_visible: (...) float32, probability that it is.
        opening: (...) float32, metres between the fingers.
    """

    gripper: Array
    cube: Array
    cube_visible: Array
    opening: Array


class ProbeNet(nn.Module):
    """A small U of convolutions, ``points`` spatial soft-argmaxes, and a head on their coordinates.

    A soft-argmax keeps where something is to a fraction of a pixel, which pooling would lose.
    """

    def __init__(self, width: int = 32, points: int = 24) -> None:
        super().__init__()
        self.width, self.points = width, points
        # Half resolution from the start, with all pixels kept in channels: half the time of a 5 x 5 convolution.
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, padding=1), nn.SiLU())
        inner = width * 3 // 2
        self.coarse = nn.Sequential(
            nn.Conv2d(width, inner, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(inner, width * 4, 1),
            nn.PixelShuffle(2),
            nn.SiLU(),
        )
        self.maps = nn.Conv2d(2 * width, points, 3, padding=1)
        self.head = nn.Sequential(
            nn.Linear(3 * points, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 8)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], sides divisible by 4 -> (B, 8).

        Gripper and cube position and the gripper's opening in units of the workspace, and the logit of "the cube is in
        view".
        """
        fine = self.fine(images)
        maps = self.maps(torch.cat([fine, self.coarse(fine)], 1))  # (B, points, H / 2, W / 2)
        height, width = maps.shape[-2:]
        weight = maps.flatten(2).softmax(-1)
        grid = weight.unflatten(2, (height, width))
        y = (grid.sum(3) * torch.linspace(-1, 1, height, device=maps.device)).sum(2)
        x = (grid.sum(2) * torch.linspace(-1, 1, width, device=maps.device)).sum(2)
        # how sharply a point is seen tells whether it is there at all
        strength = (maps.flatten(2) * weight).sum(2)
        return self.head(torch.cat([x, y, 0.1 * strength], 1))


class Probe:
    """A trained probe.

    Args:
        net: its weights.
        card: JSON values: ``camera``, ``image_size``, ``floor`` (errors on held-out real frames, see
            `measure`) and how it was trained.
        mean_frame: uint8 (H, W, 3), the mean of its training frames.
    """

    def __init__(self, net: ProbeNet, card: dict[str, Any], mean_frame: Array) -> None:
        self.net, self.card, self.mean_frame = net.eval(), card, mean_frame

    @property
    def camera(self) -> str:
        return str(self.card["camera"])

    @property
    def floor(self) -> dict[str, float]:
        """Its errors on held-out real frames."""
        return dict(self.card["floor"])

    def can_read(self, spec: RobotSpec) -> bool:
        """Whether the robot has the camera that this probe was trained on."""
        size = self.mean_frame.shape[:2]
        return any((c.name, c.height, c.width) == (self.camera, *size) for c in spec.cameras)

    def require_readable(self, spec: RobotSpec) -> None:
        """Raises ValueError that names both cameras unless `can_read`."""
        if not self.can_read(spec):
            have = ", ".join(f"{c.name} ({c.height} x {c.width})" for c in spec.cameras)
            need = " x ".join(map(str, self.mean_frame.shape[:2]))
            raise ValueError(
                f"the probe reads the camera {self.camera!r} ({need}), but {spec.name!r} has {have or 'none'}; train "
                "one with: kairos eval probe --data RECORDING --camera NAME"
            )

    @torch.inference_mode()
    def read(self, images: Array, batch: int = 256) -> Reading:
        """Reads uint8 (..., H, W, 3) pictures of `camera`."""
        images = np.asarray(images)
        if images.shape[-3:] != self.mean_frame.shape or images.dtype != np.uint8:
            raise ValueError(
                f"the probe reads uint8 pictures (..., {', '.join(map(str, self.mean_frame.shape))}) of camera "
                f"{self.camera!r}, got {images.dtype} {images.shape}; train one for yours with: kairos eval probe"
            )
        flat = images.reshape(-1, *images.shape[-3:])
        parts = [self.net(_to_input(flat[i : i + batch])) for i in range(0, len(flat), batch)]
        out = torch.cat(parts).numpy() if parts else np.zeros((0, 8), np.float32)
        lead = images.shape[:-3]
        positions = (out[:, :6].reshape(*lead, 2, 3) * _REACH + np.array(_CENTRE)).astype(np.float32)
        opening = _REACH * out[:, 6].reshape(lead)
        visible = 1 / (1 + np.exp(-out[:, 7].reshape(lead)))
        return Reading(positions[..., 0, :], positions[..., 1, :], visible, opening)

    def save(self, folder: str | Path) -> None:
        """Writes ``probe.safetensors`` and ``probe.json``."""
        tensors = {key: value.contiguous() for key, value in self.net.state_dict().items()}
        tensors["mean_frame"] = torch.from_numpy(np.ascontiguousarray(self.mean_frame))
        write_bytes(Path(folder) / _WEIGHTS, save(tensors, {"card": json.dumps(self.card)}))
        write_text(Path(folder) / _CARD, json.dumps(self.card, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path = "") -> Probe:
        """Reads what `save` wrote; without a folder, the bundled probe of the table-top scene.

        Raises:
            FileNotFoundError: there is no probe.
            ValueError: the file is damaged or of another kind.
        """
        path = (Path(folder) if str(folder) else Path(__file__).parents[2] / "pretrained" / "probe") / _WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(f"no probe at {path}; train one with: kairos eval probe")
        try:
            with safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {})["card"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            mean_frame = tensors.pop("mean_frame").numpy()
            net = ProbeNet(card["width"], card["points"])
            net.load_state_dict(tensors)
        except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a probe (truncated, or another kind of file): {error}") from None
        return cls(net, card, mean_frame)


def hand_fields(spec: RobotSpec) -> list[int]:
    """`RobotSpec.hand_fields`.

    Raises:
        ValueError: the robot does not say where its hand is.
    """
    if not spec.hand_fields:
        raise ValueError(
            f"the proprioception of {spec.name!r} does not say where the hand is: to measure positions it needs "
            "exactly three fields of the kind 'position' (x, y, z)"
        )
    return spec.hand_fields


def as_open(opening: Array, real: Array, spec: RobotSpec) -> Array | None:
    """(...) bool, whether openings are right: to a quarter of the field's range; holding a cube is half open.

    None of a robot that does not say how far its gripper is open.
    """
    if spec.gripper_field is None:
        return None
    field = spec.proprio[spec.gripper_field]
    return np.asarray(np.abs(opening - real[..., spec.gripper_field]) < (field.high - field.low) / 4)


def measure(probe: Probe, episodes: Iterable[Episode], spec: RobotSpec) -> dict[str, float]:
    """The probe's errors on real frames, in millimetres: what imagined frames are to be compared with.

    Args:
        probe: any.
        episodes: with the label ``object_position``; frames that it was not trained on.
        spec: their robot.
    """
    fields = hand_fields(spec)
    gripper: list[Array] = []
    opened: list[Array] = []
    cube: list[Array] = []
    visible: list[Array] = []
    right: list[Array] = []
    for episode in episodes:
        images = episode.images[probe.camera]
        reading = probe.read(images)
        seen = red_pixels(images) >= VISIBLE_PIXELS
        gripper.append(np.linalg.norm(reading.gripper - episode.proprio[:, fields], axis=-1))
        cube.append(np.linalg.norm(reading.cube - episode.labels["object_position"], axis=-1))
        if (found := as_open(reading.opening, episode.proprio, spec)) is not None:
            opened.append(found)
        visible.append(seen)
        right.append((reading.cube_visible > 0.5) == seen)
    in_view = np.concatenate(visible)
    errors = {"gripper": np.concatenate(gripper) * 1000, "cube": np.concatenate(cube)[in_view] * 1000}
    result: dict[str, float] = {"frames": len(in_view), "cube_visible_share": float(in_view.mean())}
    for name, values in errors.items():
        result |= {
            f"{name}_median_mm": round(float(np.median(values)), 2),
            f"{name}_mean_mm": round(float(values.mean()), 2),
            f"{name}_90_percent_mm": round(float(np.quantile(values, 0.9)), 2),
        }
    shares = {"cube_visible_accuracy": right, "opening_accuracy": opened}
    return result | {name: round(float(np.concatenate(values).mean()), 4) for name, values in shares.items() if values}


def train_probe(config: ProbeConfig, progress: bool = False) -> Probe:
    """Trains a probe on real frames, measures it on held-out episodes and saves it in ``config.output``.

    Raises:
        ValueError: the episodes have no ``object_position`` or another camera.
    """
    from tqdm import trange

    began, spent = time.perf_counter(), time.process_time()
    file = open_recording(config.data)
    order = np.random.default_rng([config.seed, 1]).permutation(len(file))
    held_out = order[: max(1, round(config.held_out * len(file)))]
    if len(held_out) == len(file):
        raise ValueError(f"{config.data} has {len(file)} episode(s); at least 2 are needed to hold one out")
    images, targets, weights = _gather(file, order[len(held_out) :], config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = ProbeNet()
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU
        optimizer = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        bar = trange(config.steps, unit="step", disable=not progress)
        for step in bar:
            pick = torch.randint(len(images), (config.batch,))
            out = net(_disturb(_to_input(images[pick.numpy()])))
            target, weight = targets[pick], weights[pick]
            error = functional.smooth_l1_loss(out[:, :7], target[:, :7], beta=0.02, reduction="none")
            visible = functional.binary_cross_entropy_with_logits(out[:, 7], target[:, 7])
            loss = (error * weight).mean() + 0.02 * visible
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}")
    card: dict[str, Any] = {
        "camera": config.camera,
        "image_size": list(images.shape[1:3]),
        "width": net.width,
        "points": net.points,
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data", "output")},
        "data": {"episodes": len(file) - len(held_out), "frames": len(images), "metadata": file.metadata},
        "held_out_episodes": len(held_out),
    }
    probe = Probe(net, card, images.mean(0, dtype=np.float64).round().astype(np.uint8))
    card["floor"] = measure(probe, (file[int(i)] for i in held_out), file.spec)
    card["seconds"], card["processor_seconds"] = (
        round(time.perf_counter() - began),
        round(time.process_time() - spent),
    )
    card["machine"] = {k: v for k, v in describe_machine().items() if k in ("time", "versions", "processor")}
    probe.save(config.output)
    return probe


def _gather(file: Recording, indices: Array, config: ProbeConfig) -> tuple[Array, Tensor, Tensor]:
    """Frames uint8 (N, H, W, 3), targets (N, 8) and weights (N, 7) of their positions and openings."""
    frames: list[Array] = []
    targets: list[Array] = []
    weights: list[Array] = []
    fields, opening = hand_fields(file.spec), file.spec.gripper_field
    every = max(1, -(-file.total // config.max_frames))
    for index in indices:
        episode = file[int(index)]
        if "object_position" not in episode.labels or config.camera not in episode.images:
            raise ValueError(
                f"{file.names[index]} lacks the label 'object_position' or the camera {config.camera!r}; it has labels "
                f"{sorted(episode.labels)} and cameras {sorted(episode.images)}. Record episodes with: kairos record"
            )
        # another phase in each episode, so that no moment of an episode is always left out
        kept = slice(int(index) % every, None, every)
        images = episode.images[config.camera][kept]
        visible = (red_pixels(images) >= VISIBLE_PIXELS).astype(np.float32)[:, None]
        positions = np.stack([episode.proprio[kept][:, fields], episode.labels["object_position"][kept]], 1)
        frames.append(images)
        places = ((positions - np.array(_CENTRE)) / _REACH).reshape(-1, 6)
        always = np.ones_like(visible)
        opened = 0 * always if opening is None else episode.proprio[kept][:, [opening]] / _REACH
        told = always * (opening is not None)
        targets.append(np.concatenate([places, opened, visible], 1))
        weights.append(np.concatenate([always.repeat(3, 1), visible.repeat(3, 1), told], 1))
    target, weight = (torch.from_numpy(np.concatenate(parts).astype(np.float32)) for parts in (targets, weights))
    return np.concatenate(frames), target, weight


def _to_input(images: Array) -> Tensor:
    """uint8 (B, H, W, 3) -> (B, 3, H, W) in [-1, 1]."""
    # permuting (B, H, W, 3) gives the channels-last layout for free
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _disturb(images: Tensor) -> Tensor:
    """Brightness, noise and a little blur: still real frames, but the reader must not hang on their crispness."""
    batch = len(images)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(batch, 1, 1, 1) * (torch.rand(batch, 1, 1, 1) < 0.5)
    images = torch.lerp(images, blurred, share)
    gain = 1 + 0.1 * torch.randn(batch, 1, 1, 1)
    tint = 0.05 * torch.randn(batch, 3, 1, 1)
    grain = 0.04 * torch.rand(batch, 1, 1, 1) * torch.randn_like(images)
    return (images * gain + tint + grain).clamp(-1, 1)
