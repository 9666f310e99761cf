"""What a policy needs beside its parameters: ``policy.json``, next to ``vocabulary.model`` and ``prompts.arrayrecord``.

A checkpoint and an export each hold these three, so that a policy runs without the data it was trained on.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gatokit.schemas.document import DocumentRules
from gatokit.schemas.episode import EpisodeSpec
from gatokit.schemas.errors import DataError
from gatokit.schemas.manifest import TokenizerSettings
from gatokit.schemas.run import RunConfig

POLICY_VERSION = 1
POLICY = "policy.json"
PROMPTS = "prompts.arrayrecord"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Prompt(_Model):
    """The episode that demonstrates a task: the one of the highest return among those for training."""

    episode_id: str
    agent: str
    episode_return: float
    first_record: int
    """Ordinal in ``prompts.arrayrecord``."""
    records: int


class PolicyTask(_Model):
    """A task as it was trained on."""

    spec: str
    """Key of the dataset's ``specs``."""
    expert_return: float
    prompt: Prompt


class PolicyDataset(_Model):
    """The tasks of a dataset of episodes, or the rules of its documents."""

    kind: str
    specs: dict[str, EpisodeSpec]
    tasks: dict[str, PolicyTask]
    documents: DocumentRules | None


class PolicyFile(_Model):
    """``policy.json``."""

    version: int = POLICY_VERSION
    config: RunConfig
    """Of the run: the model, its context, and whether actions were hidden from it."""
    tokenizer: TokenizerSettings
    vocabulary_blake2b: str
    datasets: dict[str, PolicyDataset]

    def to_bytes(self) -> bytes:
        """Indented JSON."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def read(directory: str | Path) -> "PolicyFile":
        """The file in ``directory``; DataError where it is damaged or of a newer version."""
        path = Path(directory) / POLICY
        try:
            content = json.loads(path.read_bytes())
            if content["version"] > POLICY_VERSION:
                raise DataError(
                    f"{path} has format version {content['version']} and this gatokit reads up to {POLICY_VERSION}: "
                    "install a newer gatokit"
                )
            return PolicyFile(**content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
