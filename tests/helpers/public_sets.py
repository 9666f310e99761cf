"""Small sets with the features of public ones, written through TFDS: a few episodes of made-up values.

What counts is as the field writes it: sets of robots have one reward, in the last step of a success, and a real action
there; sets of TFDS's own builders have a last step of padding behind the reward.

A feature is ``f4:7`` (float32 of shape (7,)), ``i4:``, ``bool:``, ``str:``, ``jpeg:480x640x3``, ``png:``, and in braces
``[f4:7]`` a sequence of them.
"""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

INSTRUCTIONS = ("pick up the red block", "put the carrot on the plate")
Features = Mapping[str, Any]
_DTYPES = {
    "f4": "float32",
    "f8": "float64",
    "i4": "int32",
    "i8": "int64",
    "u1": "uint8",
    "u2": "uint16",
    "bool": "bool",
}

_WORDS = {"natural_language_embedding": "f4:512", "natural_language_instruction": "str:"}
_LANGUAGE = {"language_embedding": "f4:512", "language_instruction": "str:"}
_REWARD = {"reward": "f4:"}
_RLDS = {"reward": "f4:", "discount": "f4:"}
_MARKS = {"is_first": "bool:", "is_last": "bool:", "is_terminal": "bool:"}
_FILE = {"episode_metadata": {"file_path": "str:"}}
_RT1 = {
    "base_displacement_vector": "f4:2",
    "base_displacement_vertical_rotation": "f4:1",
    "gripper_closedness_action": "f4:1",
    "rotation_delta": "f4:3",
    "terminate_episode": "i4:3",
    "world_vector": "f4:3",
}
_ATTRIBUTES = ("collection_mode", "data_type", "env", "location", "objects_family", "task_family")


def _numbered(pattern: str, names: Any, feature: str) -> dict[str, str]:
    return {pattern.format(name): feature for name in names}


@dataclass(frozen=True)
class PublicSet:
    """A set's features: ``steps`` and those of an episode; the names of its splits."""

    steps: Features
    metadata: Features = field(default_factory=dict)
    splits: tuple[str, ...] = ("train",)
    has_padding: bool = False
    """The last step is padding, and rewards come on the way."""


def _robot(
    observation: Features,
    action: Any,
    beside: Features = _REWARD,
    metadata: Features | None = None,
    splits: tuple[str, ...] = ("train",),
) -> PublicSet:
    """A set of robot data: ``beside`` are the fields of a step beside observation, action and flags."""
    return PublicSet(
        {"observation": observation, "action": action, **_MARKS, **beside}, {} if metadata is None else metadata, splits
    )


OPENX: dict[str, PublicSet] = {
    "fractal": _robot(
        {
            **_WORDS,
            "base_pose_tool_reached": "f4:7",
            "gripper_closed": "f4:1",
            "gripper_closedness_commanded": "f4:1",
            "height_to_bottom": "f4:1",
            "image": "jpeg:256x320x3",
            "orientation_box": "f4:2x3",
            "orientation_start": "f4:4",
            "robot_orientation_positions_box": "f4:3x3",
            "rotation_delta_to_go": "f4:3",
            "src_rotation": "f4:4",
            "vector_to_go": "f4:3",
            "workspace_bounds": "f4:3x3",
        },
        _RT1,
        metadata={
            "aspects": _numbered(
                "{}", ("already_success", "feasible", "has_aspects", "success", "undesirable"), "bool:"
            ),
            "attributes": _numbered("{}", _ATTRIBUTES, "i8:") | _numbered("{}_name", _ATTRIBUTES, "str:"),
        },
    ),
    "kuka": _robot(
        {
            **_WORDS,
            "clip_function_input/base_pose_tool_reached": "f4:7",
            "clip_function_input/workspace_bounds": "f4:3x3",
            "gripper_closed": "f4:1",
            "height_to_bottom": "f4:1",
            "image": "jpeg:512x640x3",
            "task_id": "f4:1",
        },
        _RT1,
        metadata={"success": "bool:"},
    ),
    "taco_play": _robot(
        {
            **_WORDS,
            "depth_gripper": "f4:84x84",
            "depth_static": "f4:150x200",
            "rgb_gripper": "jpeg:84x84x3",
            "rgb_static": "jpeg:150x200x3",
            "robot_obs": "f4:15",
            "structured_language_instruction": "str:",
        },
        _numbered("{}", ("actions", "rel_actions_gripper", "rel_actions_world"), "f4:7") | {"terminate_episode": "f4:"},
        splits=("train", "test"),
    ),
    "bc_z": _robot(
        {
            **_WORDS,
            "episode_success": "f4:",
            "image": "jpeg:171x213x3",
            "present/autonomous": "i8:",
            "present/axis_angle": "f4:3",
            "present/intervention": "i8:",
            "present/sensed_close": "f4:1",
            "present/xyz": "f4:3",
            "sequence_length": "i8:",
        },
        {"future/axis_angle_residual": "f4:30", "future/target_close": "i8:10", "future/xyz_residual": "f4:30"},
        splits=("train", "val"),
    ),
    "bridge_openx": _robot(
        {**_WORDS, "image": "jpeg:480x640x3", "state": "f4:7"},
        {"open_gripper": "bool:", "rotation_delta": "f4:3", "terminate_episode": "f4:", "world_vector": "f4:3"},
        splits=("train", "test"),
    ),
    "berkeley_autolab_ur5": _robot(
        {
            **_WORDS,
            "hand_image": "jpeg:480x640x3",
            "image": "jpeg:480x640x3",
            "image_with_depth": "depth:480x640x1",
            "robot_state": "f4:15",
        },
        {
            "gripper_closedness_action": "f4:",
            "rotation_delta": "f4:3",
            "terminate_episode": "f4:",
            "world_vector": "f4:3",
        },
        splits=("train", "test"),
    ),
    "berkeley_gnm_recon": _robot(
        {"image": "jpeg:120x160x3", "position": "f8:2", "state": "f8:3", "yaw": "f8:1"},
        "f8:2",
        {**_LANGUAGE, "action_angle": "f8:3", "reward": "f8:", "discount": "f8:"},
        _FILE,
    ),
    "stanford_robocook": _robot(
        _numbered("depth_{}", range(1, 5), "f4:256x256")
        | _numbered("image_{}", range(1, 5), "jpeg:256x256x3")
        | {"state": "f4:7"},
        "f4:7",
        {**_LANGUAGE, **_RLDS},
        {"episode_metadata": {**_numbered("extrinsics_{}", range(1, 5), "f4:4x4"), "file_path": "str:"}},
    ),
    "maniskill": _robot(
        {
            "base_pose": "f4:7",
            "depth": "png16:256x256x1",
            "image": "jpeg:256x256x3",
            "state": "f4:18",
            "target_object_or_part_final_pose": "f4:7",
            "target_object_or_part_final_pose_valid": "u1:7",
            "target_object_or_part_initial_pose": "f4:7",
            "target_object_or_part_initial_pose_valid": "u1:7",
            "tcp_pose": "f4:7",
            "wrist_depth": "png16:256x256x1",
            "wrist_image": "jpeg:256x256x3",
            **_numbered("{}_camera_cam2world_gl", ("main", "wrist"), "f4:4x4"),
            **_numbered("{}_camera_extrinsic_cv", ("main", "wrist"), "f4:4x4"),
            **_numbered("{}_camera_intrinsic_cv", ("main", "wrist"), "f4:3x3"),
        },
        "f4:7",
        {**_LANGUAGE, **_RLDS},
        {"episode_metadata": {"episode_id": "str:", "file_path": "str:"}},
    ),
    "vima": _robot(
        {
            "ee": "i8:",
            "frontal_image": "u1:128x256x3",
            "frontal_segmentation": "u1:128x256",
            "image": "u1:128x256x3",
            "segmentation": "u1:128x256",
            "segmentation_obj_info": {"obj_name": "[str:]", "segm_id": "[i8:]", "texture_name": "[str:]"},
        },
        {f"pose{end}_{part}": f"f4:{size}" for end in (0, 1) for part, size in (("position", 3), ("rotation", 4))},
        {
            "multimodal_instruction": "str:",
            "multimodal_instruction_assets": {
                "asset_type": "[str:]",
                "frontal_image": "[u1:128x256x3]",
                "frontal_segmentation": "[u1:128x256]",
                "image": "[u1:128x256x3]",
                "key_name": "[str:]",
                "segmentation": "[u1:128x256]",
                "segmentation_obj_info": [{"obj_name": "[str:]", "segm_id": "[i8:]", "texture_name": "[str:]"}],
            },
            **_RLDS,
        },
        {
            "episode_metadata": {
                "action_bounds": {"high": "f4:3", "low": "f4:3"},
                "end-effector type": "str:",
                "failure": "bool:",
                "file_path": "str:",
                "n_objects": "i8:",
                "num_steps": "i8:",
                "robot_components_seg_ids": "[i8:]",
                "seed": "i8:",
                "success": "bool:",
                "task": "str:",
            }
        },
    ),
    "conq_hose_manipulation": _robot(
        {
            "frontleft_fisheye_image": "jpeg:726x604x3",
            "frontright_fisheye_image": "jpeg:726x604x3",
            "hand_color_image": "jpeg:480x640x3",
            "state": "f4:66",
        },
        "f4:7",
        {**_LANGUAGE, **_RLDS},
        _FILE,
        ("train", "val"),
    ),
    "fmb": _robot(
        {
            **_numbered("{}_id", ("color", "object", "shape"), "u1:"),
            **_numbered("eef_{}", ("force", "torque"), "f4:3"),
            **_numbered("image_{}", ("side_1", "side_2", "wrist_1", "wrist_2"), "jpeg:256x256x3"),
            **_numbered("image_{}_depth", ("side_1", "side_2", "wrist_1", "wrist_2"), "f4:256x256"),
            **_numbered("joint_{}", ("pos", "vel"), "f4:7"),
            **_numbered("{}", ("length", "primitive", "size"), "str:"),
            "eef_pose": "f4:7",
            "eef_vel": "f4:6",
            "state_gripper_pose": "f4:",
        },
        "f4:7",
        {**_LANGUAGE, **_RLDS},
        {
            "episode_metadata": {
                "episode_language_embedding": "f4:512",
                **_numbered("{}", ("episode_language_instruction", "episode_task", "file_path"), "str:"),
            }
        },
    ),
    "jaco_play": _robot(
        {
            **_WORDS,
            "end_effector_cartesian_pos": "f4:7",
            "end_effector_cartesian_velocity": "f4:6",
            "image": "jpeg:224x224x3",
            "image_wrist": "jpeg:224x224x3",
            "joint_pos": "f4:8",
        },
        {"gripper_closedness_action": "f4:1", "terminate_episode": "i4:3", "world_vector": "f4:3"},
        splits=("train", "test"),
    ),
    "stanford_kuka_multimodal": _robot(
        {
            **_numbered("ee_{}", ("orientation", "yaw", "yaw_delta"), "f4:4"),
            **_numbered("ee_{}", ("orientation_vel", "position", "vel"), "f4:3"),
            **_numbered("joint_{}", ("pos", "vel"), "f4:7"),
            "contact": "f4:50",
            "depth_image": "f4:128x128x1",
            "ee_forces_continuous": "f4:50x6",
            "image": "jpeg:128x128x3",
            "optical_flow": "f4:128x128x2",
            "state": "f4:8",
        },
        "f4:4",
        {**_LANGUAGE, **_RLDS},
    ),
    "robo_set": _robot(
        {
            **_numbered("image_{}", ("left", "right", "top", "wrist"), "jpeg:240x424x3"),
            "state": "f4:8",
            "state_velocity": "f4:8",
        },
        "f4:8",
        {"language_instruction": "str:", **_RLDS},
        {"episode_metadata": {"file_path": "str:", "trial_id": "str:"}},
    ),
    "language_table": _robot(
        {
            "effector_target_translation": "f4:2",
            "effector_translation": "f4:2",
            "instruction": "i4:512",
            "rgb": "jpeg:360x640x3",
        },
        "f4:2",
        metadata={"episode_id": "str:"},
    ),
    "droid": _robot(
        {
            **_numbered("{}", ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"), "jpeg:180x320x3"),
            "cartesian_position": "f8:6",
            "gripper_position": "f8:1",
            "joint_position": "f8:7",
        },
        "f8:7",
        {
            "action_dict": {
                **_numbered("cartesian_{}", ("position", "velocity"), "f8:6"),
                **_numbered("gripper_{}", ("position", "velocity"), "f8:1"),
                **_numbered("joint_{}", ("position", "velocity"), "f8:7"),
            },
            **_numbered("language_instruction{}", ("", "_2", "_3"), "str:"),
            **_RLDS,
        },
        {"episode_metadata": {"file_path": "str:", "recording_folderpath": "str:"}},
    ),
    "mt_opt": _robot(
        {"gripper_closed": "bool:", "height_to_bottom": "f4:", "image": "png:512x640x3", "state_dense": "zlib:7"},
        {**_numbered("{}", ("close_gripper", "open_gripper", "terminate"), "bool:"), "target_pose": "zlib:7"},
        {},
        {"episode_id": "str:", "skill": "u1:", "task_code": "str:"},
    ),
    "bridge_v2": PublicSet(
        {
            "observation": {
                **_numbered("image_{}", range(4), "jpeg:480x640x3"),
                "depth_0": "png16:480x640x1",
                "state": "f4:7",
            },
            "action": "f4:7",
            "is_first": "bool:",
            "is_last": "bool:",
            "language_instruction": "str:",
        },
        {
            "episode_metadata": {
                **_numbered("has_{}", ("image_0", "image_1", "image_2", "image_3", "depth_0", "language"), "bool:"),
                "file_path": "str:",
            }
        },
        ("train", "val"),
    ),
    "aloha": _robot(
        {
            **_numbered("{}", ("image", "left_wrist_image", "right_wrist_image", "low_cam_image"), "jpeg:256x256x3"),
            "state": "f4:14",
        },
        "f4:14",
        {"language_instruction": "str:", **_RLDS},
        _FILE,
        ("train", "val"),
    ),
    "libero": _robot(
        {"image": "jpeg:256x256x3", "wrist_image": "jpeg:256x256x3", "state": "f4:8", "joint_state": "f4:7"},
        "f4:7",
        {"language_instruction": "str:", **_RLDS},
        _FILE,
    ),
}
"""By the name of the dataset in examples/openx.yaml."""
BUILDERS: dict[str, str] = {
    "d4rl_ant": "d4rl_mujoco_ant/v2-medium",
    "d4rl_halfcheetah": "d4rl_mujoco_halfcheetah/v2-medium-replay",
    "d4rl_hopper": "d4rl_mujoco_hopper/v2-medium",
    "d4rl_walker2d": "d4rl_mujoco_walker2d/v2-medium-expert",
    "d4rl_antmaze": "d4rl_antmaze/umaze-v2",
    "d4rl_door": "d4rl_adroit_door/v1-human",
    "d4rl_hammer": "d4rl_adroit_hammer/v1-expert",
    "d4rl_pen": "d4rl_adroit_pen/v1-cloned",
    "d4rl_relocate": "d4rl_adroit_relocate/v1-expert",
    "rlu_atari": "rlu_atari/Pong_run_1",
    "rlu_atari_checkpoints": "rlu_atari_checkpoints/Qbert_run_1",
    "rlu_control_suite": "rlu_control_suite/fish_swim",
    "rlu_locomotion": "rlu_locomotion/humanoid_corridor",
    "rlu_dmlab_explore": "rlu_dmlab_explore_object_rewards_few/training_0",
    "rlu_dmlab_rooms": "rlu_dmlab_rooms_watermaze/training_0",
    "rlu_dmlab_seekavoid": "rlu_dmlab_seekavoid_arena01/training_0",
    "robomimic_ph": "robomimic_ph/lift_ph_image",
    "robomimic_mh": "robomimic_mh/can_mh_image",
    "robomimic_mg": "robomimic_mg/lift_mg_image",
    "robosuite_can": "robosuite_panda_pick_place_can/human_dc29b40a",
    "locomotion": "locomotion/hopper_sac_1M_single_policy_stochastic",
}
"""Sets of which TFDS itself has the features: its name of one config, by the name of the dataset."""


@dataclass(frozen=True)
class Planted:
    """An episode as it was written: ``steps`` has those with an action."""

    is_success: bool
    steps: int
    instruction: str


def write(name: str, directory: Path, episodes: int = 6) -> list[Planted]:
    """Writes a set into ``directory``: ``episodes`` of the first split and two of each other one. Returns those of the
    first split, of which every third is no success."""
    import tensorflow_datasets as tfds

    if name in OPENX:
        public = OPENX[name]
        steps, metadata = _tfds(public.steps), _tfds(public.metadata)
        features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps), **metadata})
    else:
        public = PublicSet({}, has_padding=True)
        features = tfds.builder(BUILDERS[name], data_dir=directory / "none").info.features
    directory.mkdir(parents=True, exist_ok=True)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=os.fspath(directory), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=features)
    writer = tfds.core.SequentialWriter(info, 4)
    writer.initialize_splits(list(public.splits))
    planted = []
    for split in public.splits:
        count = episodes if split == public.splits[0] else 2
        written = [_episode(name, split, number, features, public.has_padding) for number in range(count)]
        writer.add_examples({split: written})
        if split == public.splits[0]:
            lengths = [len(episode["steps"]) - public.has_padding for episode in written]
            planted = [Planted(_is_success(at), length, _instruction(at)) for at, length in enumerate(lengths)]
    writer.close_all()
    return planted


def _is_success(episode: int) -> bool:
    return episode % 3 != 2


def _instruction(episode: int) -> str:
    return INSTRUCTIONS[episode % len(INSTRUCTIONS)]


# --- features --------------------------------------------------------------------------------------------------


def _tfds(feature: Any) -> Any:
    """The TFDS features of a notation, or of a mapping of them."""
    import tensorflow_datasets as tfds

    if isinstance(feature, Mapping):
        return {name: _tfds(below) for name, below in feature.items()}
    if isinstance(feature, list):
        return tfds.features.Sequence(_tfds(feature[0]))
    if feature.startswith("["):
        return tfds.features.Sequence(_tfds(feature[1:-1]))
    kind, _, size = feature.partition(":")
    shape = tuple(int(side) for side in size.split("x") if side)
    match kind:
        case "str":
            return tfds.features.Text()
        case "jpeg" | "png":
            return tfds.features.Image(shape=shape, encoding_format=kind)
        case "png16":
            return tfds.features.Image(shape=shape, dtype=np.uint16, encoding_format="png")
        case "depth":
            return tfds.features.Image(shape=shape, dtype=np.float32)
        case "zlib":
            return tfds.features.Tensor(shape=shape, dtype=np.float32, encoding=tfds.features.Encoding.ZLIB)
        case _:
            return tfds.features.Tensor(shape=shape, dtype=np.dtype(_DTYPES[kind]))


# --- values ----------------------------------------------------------------------------------------------------


def _episode(name: str, split: str, number: int, features: Any, has_padding: bool) -> dict[str, Any]:
    draw = np.random.default_rng([zlib.crc32(f"{name}/{split}".encode()), number])
    steps, step_features = int(draw.integers(4, 7)), features["steps"].feature
    written = []
    for step in range(steps):
        values = _Values(draw, number, step)
        row = {key: values.of(step_features[key], key) for key in step_features}
        is_last = step == steps - 1
        if has_padding and is_last:
            row["action"] = np.zeros_like(row["action"])
        is_paid = step == (steps - 2 if has_padding else steps - 1)
        marks = {"is_first": step == 0, "is_last": is_last, "is_terminal": is_last, "discount": not is_last}
        marks["reward"] = _is_success(number) and is_paid
        written.append(
            row | {key: np.dtype(step_features[key].np_dtype).type(marks[key]) for key in marks.keys() & row.keys()}
        )
    values = _Values(draw, number, 0)
    return {"steps": written, **{key: values.of(features[key], key) for key in features if key != "steps"}}


@dataclass(frozen=True)
class _Values:
    """Values of one step, or of an episode."""

    draw: np.random.Generator
    episode: int
    step: int

    def of(self, feature: Any, path: str) -> Any:
        """A value that fits the feature and the name of its field."""
        import tensorflow_datasets as tfds

        name = path.rpartition("/")[2]
        if isinstance(feature, tfds.features.FeaturesDict):
            return {key: self.of(feature[key], f"{path}/{key}") for key in feature}
        if isinstance(feature, tfds.features.Sequence):
            inner = feature.feature
            is_group = isinstance(inner, tfds.features.FeaturesDict)
            return [self.of(inner, path) for _ in range(1 + self.episode % (1 if is_group else 3))]
        shape = tuple(8 if side is None else side for side in feature.shape)
        dtype = np.dtype(feature.np_dtype)
        if isinstance(feature, tfds.features.Text) or dtype.kind not in "fiub":
            return self._text(name)
        if name in ("success", "failure", "episode_success", "tag:placed", "better", "has_image_0", "has_language"):
            return dtype.type(_is_success(self.episode) != (name == "failure"))
        if isinstance(feature, tfds.features.Image):
            across = np.arange(shape[0] * shape[1]).reshape(shape[:2]) + 7 * self.step
            return np.repeat((across % 200)[..., None], shape[2], axis=2).astype(dtype)
        if name == "instruction":
            codes = np.frombuffer(_instruction(self.episode).encode(), np.uint8)
            return np.pad(codes, (0, shape[0] - len(codes))).astype(dtype)
        if dtype.kind == "f":
            values = self.draw.normal(0, 0.02 if "action" in path else 0.5, shape)
        else:
            values = self.draw.integers(0, 2, shape)
        return np.asarray(values, dtype) if shape else dtype.type(values)

    def _text(self, name: str) -> str:
        if "instruction" in name or name in ("task", "episode_task", "task_code"):
            return _instruction(self.episode)
        if "path" in name:
            return f"/data/{'success' if _is_success(self.episode) else 'failure'}/{self.episode:06d}/out.npy"
        return f"{name} {self.episode}"
