"""``policy.json``: what a policy needs besides its parameters.

A checkpoint and an export hold it together with ``vocabulary.model`` and ``prompts.arrayrecord``, so that a policy runs
without the data that it was trained on.
"""

from pydantic import BaseModel, ConfigDict

from gatokit.schemas.manifest import DocumentRules, EpisodeSpec, TokenizerSettings, indented_json
from gatokit.schemas.run import RunConfig
from gatokit.schemas.untrusted import Count

POLICY_VERSION = 1
POLICY = "policy.json"
PROMPTS = "prompts.arrayrecord"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Prompt(_Model):
    """The episode that demonstrates a task: the training episode with the highest return."""

    episode_id: str
    agent: str
    episode_return: float | None
    """None if the data has no rewards."""
    first_record: Count
    """Its ordinal in ``prompts.arrayrecord``."""
    records: Count


class PolicyTask(_Model):
    """A task as it was trained on."""

    spec: str
    """Key of the dataset's ``specs``."""
    expert_return: float | None
    """None if the data has no rewards."""
    prompt: Prompt


class PolicyDataset(_Model):
    """The tasks of a dataset of episodes, or the rules for its documents."""

    kind: str
    specs: dict[str, EpisodeSpec]
    tasks: dict[str, PolicyTask]
    documents: DocumentRules | None


class PolicyFile(_Model):
    """``policy.json``."""

    version: int = POLICY_VERSION
    config: RunConfig
    """The run's config: the model, its context, and whether actions were hidden from it."""
    tokenizer: TokenizerSettings
    vocabulary_blake2b: str | None
    """Of ``vocabulary.model``; None if the data has no text, and there is no such file."""
    datasets: dict[str, PolicyDataset]

    def to_bytes(self) -> bytes:
        """Indented JSON."""
        return indented_json(self.model_dump(mode="json"))
