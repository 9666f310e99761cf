"""The layouts of public robot sets (Open X-Embodiment, DROID, MT-Opt, BridgeData V2, ALOHA), and made-up episodes of
them: one reward, 1 in the last step of a success, and a real action there."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

F = tfds.features
f32, f64, i32, i64, u8, u16, flag, text = (
    *(np.float32, np.float64, np.int32, np.int64, np.uint8, np.uint16, np.bool_, np.str_),
)
INSTRUCTIONS = ("pick up the red block", "open the drawer", "put the carrot on the plate", "fold the towel")


def tensor(*shape: int, dtype: Any = f32, **options: Any) -> F.Tensor:
    return F.Tensor(shape=shape, dtype=dtype, **options)


def image(height: int, width: int, channels: int = 3, dtype: Any = u8, encoding: str | None = "jpeg") -> F.Image:
    return F.Image(shape=(height, width, channels), dtype=dtype, encoding_format=encoding)


def flags(reward: Any = f32, discount: Any = f32) -> dict[str, Any]:
    found = {"is_first": flag, "is_last": flag, "is_terminal": flag, "reward": F.Scalar(dtype=reward)}
    return found if discount is None else {**found, "discount": F.Scalar(dtype=discount)}


@dataclass(frozen=True)
class Layout:
    """Features of a step and of an episode, the splits, and where instruction and success stand."""

    steps: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ("train",)
    instruction: str = "language_instruction"


LANGUAGE = {"language_embedding": tensor(512), "language_instruction": F.Text()}
NATURAL = {"natural_language_embedding": tensor(512), "natural_language_instruction": text}
OBSERVED = "observation/natural_language_instruction"
FILE = {"episode_metadata": F.FeaturesDict({"file_path": F.Text()})}
RT1_ACTION = F.FeaturesDict(
    {
        "base_displacement_vector": tensor(2),
        "base_displacement_vertical_rotation": tensor(1),
        "gripper_closedness_action": tensor(1),
        "rotation_delta": tensor(3),
        "terminate_episode": tensor(3, dtype=i32),
        "world_vector": tensor(3),
    }
)
ASPECTS = ("already_success", "feasible", "has_aspects", "success", "undesirable")
ATTRIBUTES = ("collection_mode", "data_type", "env", "location", "objects_family", "task_family")
OBJECTS = {"obj_name": F.Sequence(text), "segm_id": F.Sequence(F.Scalar(i64)), "texture_name": F.Sequence(text)}
DROID_ACTIONS = {f"cartesian_{kind}": 6 for kind in ("position", "velocity")}
DROID_ACTIONS |= {f"gripper_{kind}": 1 for kind in ("position", "velocity")}
DROID_ACTIONS |= {f"joint_{kind}": 7 for kind in ("position", "velocity")}

LAYOUTS: dict[str, Layout] = {
    "fractal20220817_data": Layout(
        {
            "action": RT1_ACTION,
            "observation": F.FeaturesDict(
                {
                    **{name: tensor(1) for name in ("gripper_closed", "gripper_closedness_commanded")},
                    **{name: tensor(3) for name in ("rotation_delta_to_go", "vector_to_go")},
                    **{name: tensor(3, 3) for name in ("robot_orientation_positions_box", "workspace_bounds")},
                    **{name: tensor(4) for name in ("orientation_start", "src_rotation")},
                    "base_pose_tool_reached": tensor(7),
                    "height_to_bottom": tensor(1),
                    "orientation_box": tensor(2, 3),
                    "image": image(256, 320),
                    **NATURAL,
                }
            ),
            **flags(discount=None),
        },
        {
            "aspects": F.FeaturesDict(dict.fromkeys(ASPECTS, flag)),
            "attributes": F.FeaturesDict(
                {**dict.fromkeys(ATTRIBUTES, i64), **{f"{name}_name": text for name in ATTRIBUTES}}
            ),
        },
        instruction=OBSERVED,
    ),
    "kuka": Layout(
        {
            "action": RT1_ACTION,
            "observation": F.FeaturesDict(
                {
                    "clip_function_input/base_pose_tool_reached": tensor(7),
                    "clip_function_input/workspace_bounds": tensor(3, 3),
                    **{name: tensor(1) for name in ("gripper_closed", "height_to_bottom", "task_id")},
                    "image": image(512, 640),
                    **NATURAL,
                }
            ),
            **flags(discount=None),
        },
        {"success": flag},
        instruction=OBSERVED,
    ),
    "taco_play": Layout(
        {
            "action": F.FeaturesDict(
                {
                    **{name: tensor(7) for name in ("actions", "rel_actions_gripper", "rel_actions_world")},
                    "terminate_episode": f32,
                }
            ),
            "observation": F.FeaturesDict(
                {
                    "depth_gripper": tensor(84, 84),
                    "depth_static": tensor(150, 200),
                    "rgb_gripper": image(84, 84),
                    "rgb_static": image(150, 200),
                    "robot_obs": tensor(15),
                    "structured_language_instruction": text,
                    **NATURAL,
                }
            ),
            **flags(discount=None),
        },
        splits=("train", "test"),
        instruction=OBSERVED,
    ),
    "bc_z": Layout(
        {
            "action": F.FeaturesDict(
                {
                    "future/axis_angle_residual": tensor(30),
                    "future/target_close": tensor(10, dtype=i64),
                    "future/xyz_residual": tensor(30),
                }
            ),
            "observation": F.FeaturesDict(
                {
                    "episode_success": f32,
                    "image": image(171, 213),
                    "present/autonomous": i64,
                    "present/axis_angle": tensor(3),
                    "present/intervention": i64,
                    "present/sensed_close": tensor(1),
                    "present/xyz": tensor(3),
                    "sequence_length": i64,
                    **NATURAL,
                }
            ),
            **flags(discount=None),
        },
        splits=("train", "val"),
        instruction=OBSERVED,
    ),
    "bridge": Layout(
        {
            "action": F.FeaturesDict(
                {"open_gripper": flag, "rotation_delta": tensor(3), "terminate_episode": f32, "world_vector": tensor(3)}
            ),
            "observation": F.FeaturesDict({"image": image(480, 640), "state": tensor(7), **NATURAL}),
            **flags(discount=None),
        },
        splits=("train", "test"),
        instruction=OBSERVED,
    ),
    "berkeley_autolab_ur5": Layout(
        {
            "action": F.FeaturesDict(
                {
                    "gripper_closedness_action": f32,
                    "rotation_delta": tensor(3),
                    "terminate_episode": f32,
                    "world_vector": tensor(3),
                }
            ),
            "observation": F.FeaturesDict(
                {
                    "hand_image": image(480, 640),
                    "image": image(480, 640),
                    "image_with_depth": image(480, 640, 1, f32, None),
                    "robot_state": tensor(15),
                    **NATURAL,
                }
            ),
            **flags(discount=None),
        },
        splits=("train", "test"),
        instruction=OBSERVED,
    ),
    "berkeley_gnm_recon": Layout(
        {
            "action": tensor(2, dtype=f64),
            "action_angle": tensor(3, dtype=f64),
            "observation": F.FeaturesDict(
                {
                    "image": image(120, 160),
                    "position": tensor(2, dtype=f64),
                    "state": tensor(3, dtype=f64),
                    "yaw": tensor(1, dtype=f64),
                }
            ),
            **LANGUAGE,
            **flags(f64, f64),
        },
        FILE,
    ),
    "stanford_robocook": Layout(
        {
            "action": tensor(7),
            "observation": F.FeaturesDict(
                {
                    **{f"depth_{camera}": tensor(256, 256) for camera in range(1, 5)},
                    **{f"image_{camera}": image(256, 256) for camera in range(1, 5)},
                    "state": tensor(7),
                }
            ),
            **LANGUAGE,
            **flags(),
        },
        {
            "episode_metadata": F.FeaturesDict(
                {**{f"extrinsics_{camera}": tensor(4, 4) for camera in range(1, 5)}, "file_path": F.Text()}
            )
        },
    ),
    "maniskill": Layout(
        {
            "action": tensor(7),
            "observation": F.FeaturesDict(
                {
                    **{f"{name}cam2world_gl": tensor(4, 4) for name in ("main_camera_", "wrist_camera_")},
                    **{f"{name}extrinsic_cv": tensor(4, 4) for name in ("main_camera_", "wrist_camera_")},
                    **{f"{name}intrinsic_cv": tensor(3, 3) for name in ("main_camera_", "wrist_camera_")},
                    **{f"target_{when}_pose": tensor(7) for when in ("final", "initial")},
                    **{f"target_{when}_pose_valid": tensor(7, dtype=u8) for when in ("final", "initial")},
                    "base_pose": tensor(7),
                    "depth": image(256, 256, 1, u16, "png"),
                    "image": image(256, 256),
                    "state": tensor(18),
                    "tcp_pose": tensor(7),
                    "wrist_depth": image(256, 256, 1, u16, "png"),
                    "wrist_image": image(256, 256),
                }
            ),
            **LANGUAGE,
            **flags(),
        },
        {"episode_metadata": F.FeaturesDict({"episode_id": F.Text(), "file_path": F.Text()})},
    ),
    "vima": Layout(
        {
            "action": F.FeaturesDict(
                {
                    f"pose{number}_{kind}": tensor(size)
                    for number in (0, 1)
                    for kind, size in (("position", 3), ("rotation", 4))
                }
            ),
            "multimodal_instruction": text,
            "multimodal_instruction_assets": F.FeaturesDict(
                {
                    "asset_type": F.Sequence(text),
                    "image": F.Sequence(tensor(128, 256, 3, dtype=u8)),
                    "segmentation": F.Sequence(tensor(128, 256, dtype=u8)),
                    "segmentation_obj_info": F.Sequence(OBJECTS),
                }
            ),
            "observation": F.FeaturesDict(
                {
                    "ee": i64,
                    "frontal_image": tensor(128, 256, 3, dtype=u8),
                    "frontal_segmentation": tensor(128, 256, dtype=u8),
                    "image": tensor(128, 256, 3, dtype=u8),
                    "segmentation": tensor(128, 256, dtype=u8),
                    "segmentation_obj_info": F.FeaturesDict(OBJECTS),
                }
            ),
            **flags(),
        },
        {
            "episode_metadata": F.FeaturesDict(
                {
                    "action_bounds": F.FeaturesDict({"high": tensor(3), "low": tensor(3)}),
                    "end-effector type": text,
                    "failure": F.Scalar(flag),
                    "n_objects": F.Scalar(i64),
                    "robot_components_seg_ids": F.Sequence(F.Scalar(i64)),
                    "seed": F.Scalar(i64),
                    "success": F.Scalar(flag),
                    "task": text,
                }
            )
        },
        instruction="multimodal_instruction",
    ),
    "conq_hose_manipulation": Layout(
        {
            "action": tensor(7),
            "observation": F.FeaturesDict(
                {
                    "frontleft_fisheye_image": image(726, 604),
                    "frontright_fisheye_image": image(726, 604),
                    "hand_color_image": image(480, 640),
                    "state": tensor(66),
                }
            ),
            **LANGUAGE,
            **flags(),
        },
        FILE,
        splits=("train", "val"),
    ),
    "fmb": Layout(
        {
            "action": tensor(7),
            "observation": F.FeaturesDict(
                {
                    **{f"image_{camera}": image(256, 256) for camera in ("side_1", "side_2", "wrist_1", "wrist_2")},
                    **{f"image_{camera}_depth": tensor(256, 256) for camera in ("side_1", "wrist_1")},
                    **{f"{name}_id": F.Scalar(u8) for name in ("color", "object", "shape")},
                    **{f"eef_{name}": tensor(size) for name, size in (("force", 3), ("pose", 7), ("vel", 6))},
                    **{name: tensor(7) for name in ("joint_pos", "joint_vel")},
                    **dict.fromkeys(("length", "primitive", "size"), text),
                    "state_gripper_pose": F.Scalar(f32),
                }
            ),
            **LANGUAGE,
            **flags(),
        },
        {
            "episode_metadata": F.FeaturesDict(
                {
                    "episode_language_embedding": tensor(512),
                    "episode_language_instruction": text,
                    "episode_task": text,
                    "file_path": text,
                }
            )
        },
    ),
    "jaco_play": Layout(
        {
            "action": F.FeaturesDict(
                {
                    "gripper_closedness_action": tensor(1),
                    "terminate_episode": tensor(3, dtype=i32),
                    "world_vector": tensor(3),
                }
            ),
            "observation": F.FeaturesDict(
                {
                    "end_effector_cartesian_pos": tensor(7),
                    "image": image(224, 224),
                    "image_wrist": image(224, 224),
                    "joint_pos": tensor(8),
                    **NATURAL,
                }
            ),
            **flags(discount=None),
        },
        splits=("train", "test"),
        instruction=OBSERVED,
    ),
    "stanford_kuka_multimodal": Layout(
        {
            "action": tensor(4),
            "observation": F.FeaturesDict(
                {
                    "contact": tensor(50),
                    "depth_image": tensor(128, 128, 1),
                    "ee_forces_continuous": tensor(50, 6),
                    "ee_position": tensor(3),
                    "image": image(128, 128),
                    "optical_flow": tensor(128, 128, 2),
                    "state": tensor(8),
                }
            ),
            **LANGUAGE,
            **flags(),
        },
        {"episode_metadata": F.FeaturesDict({})},
    ),
    "robo_set": Layout(
        {
            "action": tensor(8),
            "language_instruction": text,
            "observation": F.FeaturesDict(
                {
                    **{f"image_{camera}": image(240, 424) for camera in ("left", "right", "top", "wrist")},
                    "state": tensor(8),
                    "state_velocity": tensor(8),
                }
            ),
            **flags(),
        },
        {"episode_metadata": F.FeaturesDict({"file_path": text, "trial_id": text})},
    ),
    "language_table": Layout(
        {
            "action": tensor(2),
            "observation": F.FeaturesDict(
                {
                    "effector_target_translation": tensor(2),
                    "effector_translation": tensor(2),
                    "instruction": tensor(512, dtype=i32),
                    "rgb": image(360, 640),
                }
            ),
            **flags(discount=None),
        },
        {"episode_id": text},
        instruction="observation/instruction",
    ),
    "droid": Layout(
        {
            "action": tensor(7, dtype=f64),
            "action_dict": F.FeaturesDict({name: tensor(size, dtype=f64) for name, size in DROID_ACTIONS.items()}),
            "language_instruction": F.Text(),
            "language_instruction_2": F.Text(),
            "language_instruction_3": F.Text(),
            "observation": F.FeaturesDict(
                {
                    **{
                        f"{camera}_left": image(180, 320)
                        for camera in ("exterior_image_1", "exterior_image_2", "wrist_image")
                    },
                    "cartesian_position": tensor(6, dtype=f64),
                    "gripper_position": tensor(1, dtype=f64),
                    "joint_position": tensor(7, dtype=f64),
                }
            ),
            **flags(),
        },
        {"episode_metadata": F.FeaturesDict({"file_path": F.Text(), "recording_folderpath": F.Text()})},
    ),
    "mt_opt_rlds": Layout(
        {
            "action": F.FeaturesDict(
                {
                    "close_gripper": flag,
                    "open_gripper": flag,
                    "target_pose": tensor(7, encoding=F.Encoding.ZLIB),
                    "terminate": flag,
                }
            ),
            "is_first": flag,
            "is_last": flag,
            "is_terminal": flag,
            "observation": F.FeaturesDict(
                {
                    "gripper_closed": flag,
                    "height_to_bottom": f32,
                    "image": image(512, 640, encoding=None),
                    "state_dense": tensor(7, encoding=F.Encoding.ZLIB),
                }
            ),
        },
        {"episode_id": text, "skill": u8, "task_code": text},
        instruction="task_code",
    ),
    "bridge_dataset_v2": Layout(
        {
            "action": tensor(7),
            "is_first": flag,
            "is_last": flag,
            "language_instruction": F.Text(),
            "observation": F.FeaturesDict(
                {
                    **{f"image_{camera}": image(480, 640) for camera in range(4)},
                    "depth_0": image(480, 640, 1, u16, "png"),
                    "state": tensor(7),
                }
            ),
        },
        {
            "episode_metadata": F.FeaturesDict(
                {
                    "file_path": F.Text(),
                    **{f"has_{name}": F.Scalar(flag) for name in ("image_0", "image_1", "depth_0", "language")},
                }
            )
        },
        splits=("train", "val"),
    ),
    "aloha1_put_x_into_pot": Layout(
        {
            "action": tensor(14),
            "language_instruction": F.Text(),
            "observation": F.FeaturesDict(
                {
                    **{f"{camera}image": image(256, 256) for camera in ("", "left_wrist_", "right_wrist_", "low_cam_")},
                    "state": tensor(14),
                }
            ),
            **flags(),
        },
        FILE,
        splits=("train", "val"),
    ),
}


def episodes(name: str, split: str, count: int, steps: int = 6) -> list[dict[str, Any]]:
    """Made-up episodes of a layout: every third fails, and the instruction goes round."""
    layout = LAYOUTS[name]
    rng = np.random.default_rng(zlib.crc32(f"{name} {split}".encode()))
    found = []
    for number in range(count):
        episode = _Episode(rng, split, number, steps + number % 3)
        rows = [episode.value(F.FeaturesDict(layout.steps), (), step) for step in range(episode.steps)]
        metadata = episode.value(F.FeaturesDict(layout.metadata), (), 0) if layout.metadata else {}
        found.append({"steps": rows, **metadata})
    return found


def is_success(number: int) -> bool:
    """Whether episode ``number`` of a split is a success."""
    return number % 3 != 2


@dataclass(frozen=True)
class _Episode:
    rng: np.random.Generator
    split: str
    number: int
    steps: int

    def value(self, feature: Any, path: tuple[str, ...], step: int) -> Any:
        """A value of a feature at a step."""
        if isinstance(feature, F.FeaturesDict):
            return {key: self.value(feature[key], (*path, *key.split("/")), step) for key in feature}
        if isinstance(feature, F.Sequence):
            return [self.value(feature.feature, path, step) for _ in range(1 + step % 3)]
        shape, dtype = tuple(feature.shape), feature.np_dtype
        if isinstance(feature, F.Image):
            return self._frame(shape, step).astype(dtype) * {u8: 1, u16: 40, f32: 0.01}[np.dtype(dtype).type]
        if dtype in (object, str, np.str_):
            return self._text(path[-1], step)
        return self._numbers(path, shape, np.dtype(dtype), step)

    def _frame(self, shape: tuple[int, ...], step: int) -> np.ndarray:
        rows, columns = np.mgrid[: shape[0], : shape[1]]
        planes = [rows * (plane + 1) + columns + 5 * step + 40 * self.number for plane in range(shape[2])]
        return (np.stack(planes, -1) % 256).astype(u8)

    def _text(self, name: str, step: int) -> str:
        if "instruction" in name or "task" in name:
            return INSTRUCTIONS[self.number % len(INSTRUCTIONS)]
        if "path" in name:
            return f"/recordings/{self.split}/{self.number:06d}/out.npy"
        if name.endswith("id"):
            return f"{self.split}-{self.number:06d}"
        return {"length": "long", "size": "M", "primitive": ("grasp", "place")[step % 2]}.get(name, f"{name} 1")

    def _numbers(self, path: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype, step: int) -> Any:
        name, is_last, won = path[-1], step == self.steps - 1, is_success(self.number)
        known = {"is_first": step == 0, "is_last": is_last, "is_terminal": is_last, "discount": 1, "success": won}
        known |= {"reward": won and is_last, "episode_success": won, "failure": not won, "sequence_length": self.steps}
        if name in known:
            return dtype.type(known[name])
        if name == "instruction":
            codes = [*map(ord, self._text(name, step))]
            return np.array(codes + [0] * (shape[0] - len(codes)), dtype)
        if name == "terminate_episode" and shape:
            return np.array([is_last, not is_last, 0], dtype)
        if dtype.kind in "iub":
            high = 2 if dtype.kind == "b" else 256 if len(shape) > 1 else 10
            return self.rng.integers(0, high, shape).astype(dtype)[()]
        values = self.rng.normal(0, 0.3, shape) + (1.5 if "depth" in name else 0)
        return (values * (0.05 if path[0] == "action" else 1)).astype(dtype)[()]


def planted(name: str, split: str, count: int) -> Iterator[tuple[str, bool]]:
    """The instruction of each episode of ``episodes``, and whether it is a success."""
    for number in range(count):
        yield INSTRUCTIONS[number % len(INSTRUCTIONS)], is_success(number)
