"""Run by ``test_eight_devices`` with eight virtual devices: what meshes of several shapes compute, as JSON."""

import json
import sys
from typing import Any

import jax
import numpy as np
from random_windows import VOCABULARY, random_batch

from gatokit.schemas.run import RunConfig
from gatokit.trainer.mesh import make_mesh, place
from gatokit.trainer.step import State, Trainer

MESHES = {
    "one device": (1, 1, 1, 1),
    "data": (8, 1, 1, 1),
    "fsdp": (1, 8, 1, 1),
    "tensor": (1, 1, 4, 1),
    "all": (2, 2, 2, 2),
    "microbatches": (1, 1, 1, 4),
}
"""Devices along data, fsdp and tensor, and microbatches."""
ROWS, TOKENS, DATASETS, SLOTS = 16, 16, 3, 4


def make_trainer(data: int, fsdp: int, tensor: int, microbatches: int) -> Trainer:
    config = RunConfig(
        model={
            "layers": 2, "width": 32, "heads": 4, "head_size": 8, "hidden": 64, "stochastic_depth": 0.5,
        },
        context=TOKENS,
        batch=ROWS,
        microbatches=microbatches,
        steps=100,
        input={"patch_group_rows": 1, "hide_actions": 0.5},
        optimizer={"warmup_steps": 2, "epsilon": 1e-4},
        mesh={"data": data, "fsdp": fsdp, "tensor": tensor},
        precision="float32",
        loss_weight="sequence",
    )  # fmt: skip
    mesh = make_mesh(config.mesh, jax.devices()[: data * fsdp * tensor])
    return Trainer(config, VOCABULARY, DATASETS, SLOTS, mesh)


def plain(tree: Any) -> Any:
    """Named tuples and arrays as dicts and lists, for JSON."""
    if hasattr(tree, "_asdict"):
        return {name: plain(value) for name, value in tree._asdict().items()}
    return np.asarray(tree).tolist()


def same_bits(one: Any, other: Any) -> bool:
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def distances(true: Any, found: Any) -> dict[str, float]:
    """How far each array is from the true one, relative to that one's norm."""
    far = jax.tree.map(lambda a, b: float(np.linalg.norm(b - a) / max(np.linalg.norm(a), 1e-30)), true, found)
    return {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(far)}


def main() -> None:
    """Prints what two steps from the same state said on one device and on the meshes that are named, and how far the
    state after them is from one device's; and what a repeated step and a NaN did to the state on one device."""
    found: dict[str, Any] = {}
    batches = [random_batch(ROWS, TOKENS, group=1, slots=SLOTS, hide=True, seed=seed) for seed in (0, 1)]
    initial: Any = None
    reference: Any = None
    for name in ("one device", *sys.argv[1:]):
        trainer = make_trainer(*MESHES[name])
        if initial is None:
            initial = jax.tree.map(np.asarray, trainer.init())
        state = jax.device_put(initial, trainer.shardings)
        state, first = trainer.step(state, place(batches[0], trainer.mesh))
        state, second = trainer.step(state, place(batches[1], trainer.mesh))
        after = jax.tree.map(np.asarray, state)
        reference = after if reference is None else reference
        found[name] = {
            "first": plain(first), "second": plain(second), "far": distances(reference, after),
            "devices": len(state.params["layers"]["attention"]["query"].sharding.device_set),
        }  # fmt: skip
        if name == "one device":
            again, _ = trainer.step(jax.device_put(initial, trainer.shardings), place(batches[0], trainer.mesh))
            again, _ = trainer.step(again, place(batches[1], trainer.mesh))
            found["repeated"] = same_bits(again, after)
            broken = jax.tree.map(np.copy, initial)
            broken.params["norm"]["scale"][3] = np.nan
            kept, said = trainer.step(jax.device_put(broken, trainer.shardings), place(batches[0], trainer.mesh))
            found["broken"] = {
                "taken": plain(said.taken),
                "step": plain(kept.step),
                "unchanged": same_bits(State(0, *kept[1:]), State(0, *broken[1:])),
            }
        if name == "all":
            params = jax.device_put(initial.params, trainer.shardings.params)
            found["evaluated"] = plain(trainer.evaluate(params, place(batches[0], trainer.mesh)))
            found["initialized"] = distances(initial.params, jax.tree.map(np.asarray, trainer.init().params))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
