"""Small HDF5 files of others, to be damaged by tests."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

ROWS = 5


def robomimic_file(path: Path) -> Path:
    """Two demonstrations as robomimic writes them."""
    osc = {"type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05] * 3 + [0.5] * 3}
    environment = {"robots": ["Panda"], "controller_configs": osc | {"control_delta": True}, "control_freq": 20}
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": environment})
        for number in range(2):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = ROWS
            demo["actions"], demo["rewards"] = rng.uniform(-1, 1, (ROWS, 7)), np.eye(ROWS)[-1]
            for key, width in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
                demo[f"obs/robot0_{key}"] = rng.uniform(-0.04, 0.04, (ROWS, width))
            pictures = rng.integers(0, 255, (ROWS, 16, 16, 3), dtype=np.uint8)
            demo.create_dataset("obs/agentview_image", data=pictures, chunks=(1, 16, 16, 3), compression="gzip")
    return path


def libero_file(path: Path) -> Path:
    """Two demonstrations as LIBERO's own script writes them: a row's frame is that after its action."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["bddl_file_name"] = "x/lift_it.bddl"
        for number in range(2):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = ROWS
            joints = np.cumsum(rng.normal(0, 0.1, (ROWS + 1, 7)), 0)
            demo["actions"], demo["rewards"] = rng.uniform(-1, 1, (ROWS, 7)), np.eye(ROWS)[-1]
            demo["states"] = np.concatenate([np.zeros((ROWS, 1)), joints[:-1]], 1)
            demo["obs/joint_states"] = joints[1:]
            for key, width in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                demo[f"obs/{key}"] = rng.uniform(-0.1, 0.1, (ROWS, width))
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                demo[f"obs/{camera}"] = rng.integers(0, 255, (ROWS, 16, 16, 3), dtype=np.uint8)
    return path


def robotwin_file(path: Path) -> Path:
    """An episode as XPolicyLab writes it."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(buffer, "JPEG", comment=b"XPL-RGB1")
    with h5py.File(path, "w") as file:
        for part in ("state", "action"):
            for side in ("left", "right"):
                file[f"{part}/{side}_arm_joint_states"] = np.random.default_rng(0).uniform(size=(ROWS, 6))
                file[f"{part}/{side}_ee_joint_states"] = np.zeros((ROWS, 1))
        for camera in ("head", "left_wrist", "right_wrist"):
            file[f"vision/cam_{camera}/colors"] = np.array([buffer.getvalue()] * ROWS, "S")
        file["instructions"] = json.dumps(["lift it"])
    return path


def crash_in(path: Path) -> Path:
    """The tree of the root group names itself as its own branch: libhdf5 follows it until its stack ends."""
    raw = bytearray(path.read_bytes())
    at = raw.find(b"TREE")
    raw[at + 5] = 1
    struct.pack_into("<Q", raw, at + 32, at)
    path.write_bytes(raw)
    return path


def no_end_in(path: Path) -> Path:
    """The lists of free blocks in the heaps of names are circles."""
    raw, at = bytearray(path.read_bytes()), -1
    while (at := raw.find(b"HEAP", at + 1)) >= 0:
        size, free, start = struct.unpack_from("<QQQ", raw, at + 8)
        if free < size:
            struct.pack_into("<Q", raw, start + free, free)
    path.write_bytes(raw)
    return path
