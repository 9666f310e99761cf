"""A policy of random weights and what it was trained on, without a run: for tests of what it does, not how well."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from gatokit.policy.policy import Policy
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, ImageSpec, TokenizerSettings
from gatokit.schemas.policy import PolicyDataset, PolicyFile, PolicyTask, Prompt
from gatokit.schemas.record import Record
from gatokit.schemas.run import ModelConfig, RunConfig
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.tokenizers.image_codec import encode
from gatokit.tokenizers.text import TextTokenizer
from gatokit.trainer.model import parameter_table

ARM = EpisodeSpec.ordered(
    [
        FieldSpec(path="observation/position", kind="continuous", dtype="float32", shape=(2,)),
        FieldSpec(path="observation/hand", kind="discrete", dtype="int64", num=3),
        FieldSpec(path="action", kind="continuous", dtype="float32", shape=(3,), range=((-2.0, 2.0),)),
    ]
)
"""Three tokens seen, three of the action: seven a step."""
ROOM = EpisodeSpec.ordered(
    [
        FieldSpec(
            path="observation/view",
            kind="image",
            dtype="uint8",
            shape=(16, 32, 3),
            image=ImageSpec(height=16, width=32),
        ),
        FieldSpec(path="observation/mission", kind="text", dtype="str"),
        FieldSpec(path="action", kind="discrete", dtype="int64", num=200),
    ]
)
"""Text of any length, two patches, one action token."""
MODEL = {"layers": 2, "width": 32, "heads": 2, "head_size": 8, "hidden": 48}


def observation(spec: EpisodeSpec, seed: int) -> dict:
    """A random one."""
    random = np.random.default_rng(seed)
    if spec is ARM:
        return {"position": random.normal(size=2).astype(np.float32), "hand": np.array(random.integers(3))}
    words = ["go", "to", "the", "red", "ball", "in", "a", "room"]
    return {
        "view": random.integers(0, 256, (16, 32, 3), np.uint8),
        "mission": " ".join(random.choice(words, random.integers(1, 7))),
    }


def episode(spec: EpisodeSpec, observations: list[dict], actions: list) -> tuple[dict, int]:
    """The values of a recording of these, by field, and its steps."""
    values: dict = {"action": np.stack(actions)}
    for field in spec.observation:
        found = [item[field.path.removeprefix("observation/")] for item in observations]
        if field.kind == "image":
            values[field.path] = [EncodedImage(encode(pixels), *pixels.shape[:2]) for pixels in found]
        else:
            values[field.path] = found if field.kind == "text" else np.stack(found)
    return values, len(actions)


def demonstration(spec: EpisodeSpec, steps: int = 6) -> tuple[dict, int]:
    """The episode that the policy's prompts are taken from, or its first steps."""
    random = np.random.default_rng(1)
    field = spec.action[0]
    actions = [
        random.uniform(-2, 2, field.shape).astype(np.float32) if spec is ARM else np.array(random.integers(200))
        for _ in range(6)
    ]
    observations = [observation(spec, 1000 + step) for step in range(steps)]
    return episode(spec, observations, actions[:steps])


@cache
def text_tokenizer(vocabulary: Path) -> TextTokenizer:
    return TextTokenizer.load(vocabulary)


def policy(
    folder: Path, vocabulary: Path, *, context: int, hide: float = 0.0, positions: str = "relative", offset: int = 0
) -> Policy:
    """A policy of the tasks ``rooms/arm`` and ``rooms/room``; ``folder`` gets its demonstrations."""
    config = RunConfig(
        model=ModelConfig(**MODEL, positions=positions),
        context=context,
        batch=8,
        precision="float32",
        input={"hide_actions": hide},
    )
    settings, text = TokenizerSettings.of(offset), text_tokenizer(vocabulary)
    writer = ArrayRecordWriter(str(folder / "prompts.arrayrecord"), "group_size:1,zstd:1")
    tasks = {}
    for number, (name, spec) in enumerate((("arm", ARM), ("room", ROOM))):
        sequence = EpisodeTokenizer(spec, settings, text).encode(*demonstration(spec))
        none = np.zeros(len(sequence.step_begin))
        flags = none.astype(np.uint8)
        writer.write(Record("demonstration", 0, 1, 0, spec.id, sequence, none, None, flags).to_bytes())
        prompt = Prompt(episode_id="d", agent="expert", episode_return=1.0, first_record=number, records=1)
        tasks[name] = PolicyTask(spec=spec.id, expert_return=1.0, prompt=prompt)
    writer.close()
    dataset = PolicyDataset(kind="episodes", specs={ARM.id: ARM, ROOM.id: ROOM}, tasks=tasks, documents=None)
    file = PolicyFile(config=config, tokenizer=settings, vocabulary_blake2b=text.digest, datasets={"rooms": dataset})
    random = np.random.default_rng(5)
    table = parameter_table(config.model, settings.vocabulary_size)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf.mean + random.normal(0, leaf.std + 0.2, leaf.shape), jnp.float32),
        table,
    )
    return Policy(folder, file, params, text, folder / "prompts.arrayrecord")
