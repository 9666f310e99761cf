"""Makes a small robot dataset in the layout of Open X-Embodiment and DROID, with made-up values.

    python examples/make_robot.py --out robot/arm

40 episodes to train and 8 to validate, 6 MB in three seconds. The instruction stands beside the observation, the only
reward is in the last step of a success, where a real action is too, and an embedding and a depth map are there as well.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

INSTRUCTIONS = ("pick up the red block", "open the drawer", "put the carrot on the plate")
SPLITS = {"train": 40, "val": 8}
HEIGHT, WIDTH = 60, 80

STEPS = {
    "observation": tfds.features.FeaturesDict(
        {
            "camera": tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="jpeg"),
            "depth": tfds.features.Tensor(shape=(HEIGHT // 2, WIDTH // 2), dtype=np.float32),
            "joints": tfds.features.Tensor(shape=(7,), dtype=np.float64),
            "gripper": tfds.features.Tensor(shape=(1,), dtype=np.float64),
        }
    ),
    "action": tfds.features.Tensor(shape=(7,), dtype=np.float64),
    "language_instruction": tfds.features.Text(),
    "language_embedding": tfds.features.Tensor(shape=(512,), dtype=np.float32),
    "reward": tfds.features.Scalar(dtype=np.float32),
    "discount": tfds.features.Scalar(dtype=np.float32),
    **{name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
}
METADATA = {"episode_metadata": tfds.features.FeaturesDict({"file_path": tfds.features.Text()})}


def episode(rng: np.random.Generator, split: str, number: int) -> dict[str, Any]:
    """One made-up episode; two of three are successes."""
    count, success = int(rng.integers(15, 25)), number % 3 != 2
    instruction = INSTRUCTIONS[number % len(INSTRUCTIONS)]
    embedding = np.random.default_rng(number % len(INSTRUCTIONS)).normal(size=512).astype(np.float32)
    joints = rng.normal(0, 0.5, 7)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    steps = []
    for step in range(count):
        action = rng.normal(0, 0.02, 7)
        camera = np.stack([rows * 4, columns * 3, np.full_like(rows, 10 * step)], -1) % 256
        steps.append(
            {
                "observation": {
                    "camera": camera.astype(np.uint8),
                    "depth": (0.5 + rows[::2, ::2] / HEIGHT + 0.01 * step).astype(np.float32),
                    "joints": joints,
                    "gripper": np.array([float(step > count // 2)]),
                },
                "action": action,
                "language_instruction": instruction,
                "language_embedding": embedding,
                "reward": np.float32(success and step == count - 1),
                "discount": np.float32(1),
                "is_first": step == 0,
                "is_last": step == count - 1,
                "is_terminal": step == count - 1,
            }
        )
        joints = joints + action
    outcome = "success" if success else "failure"
    return {"steps": steps, "episode_metadata": {"file_path": f"/lab/{outcome}/{split}-{number:04d}.h5"}}


def main() -> None:
    """Writes the two splits below ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="new folder for the version's directory")
    directory = parser.parse_args().out / "1.0.0"
    directory.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="robot", version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name=""
    )
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(STEPS), **METADATA})
    info = tfds.core.DatasetInfo(builder=identity, description="made up", features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=10, file_format="tfrecord")
    writer.initialize_splits(list(SPLITS))
    for ordinal, (split, count) in enumerate(SPLITS.items()):
        rng = np.random.default_rng(ordinal)
        writer.add_examples({split: [episode(rng, split, number) for number in range(count)]})
    writer.close_all()
    print(f"wrote {sum(SPLITS.values())} episodes to {directory}")


if __name__ == "__main__":
    main()
