"""docs/config.md is what docs/config_reference.py writes: every key of both configs, with examples that validate."""

import re
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from docs import config_reference as reference
from gatokit.schemas.config import _Documents
from gatokit.schemas.config_types import DatasetModel

TEXT: dict[str, Any] = {"name": "prose", "kind": "text", "source": "data/*.jsonl"}
REQUIRED: dict[str, dict[str, Any]] = {
    "BuildConfig": {"vocabulary": "vocabulary.model", "datasets": [TEXT]},
    "DatasetModel": {"name": "bridge"},
    "_Documents": {"name": "prose"},
    "EpisodesConfig": {"name": "bridge", "kind": "episodes", "source": "data/*"},
    "Splits": {"train": "train"},
    "TextConfig": TEXT,
    "ImageTextConfig": {"name": "captions", "kind": "image_text", "format": "parquet", "source": "data/*"},
    "ImageQuestionAnswerConfig": {
        "name": "vqa",
        "kind": "image_question_answer",
        "questions": "questions.json",
        "annotations": "answers.json",
        "image_dir": "images",
    },
    "InterleavedConfig": {
        "name": "pages",
        "kind": "interleaved",
        "format": "obelics",
        "source": "data/*",
        "image_dir": "images",
    },
    "RunConfig": {"model": "tiny"},
    "ModelConfig": {"size": "tiny"},
}
"""What the models need beside an example's key."""
KEYS = [(model, name) for model in reference.TITLES for name in model.model_fields]


def test_the_page_is_what_the_program_writes() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run `make docs`"


def test_every_model_has_a_section() -> None:
    assert set(reference.models()) | {DatasetModel, _Documents} == set(reference.TITLES)


def test_every_key_has_a_row() -> None:
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", reference.page(), re.M)
    own = [model.model_fields[name].alias or name for model in reference.TITLES for name in reference.keys(model)]
    assert rows == own


@pytest.mark.parametrize(("model", "name"), KEYS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_a_key_has_a_meaning_and_an_example_that_validates(model: type[BaseModel], name: str) -> None:
    field = model.model_fields[name]
    assert field.description
    given = yaml.safe_load("{" + reference.example(model, name) + "}")
    assert (field.alias or name) in given
    parsed = model.model_validate(REQUIRED.get(model.__name__, {}) | given)
    assert getattr(parsed, name) != field.get_default(call_default_factory=True), "the example is the default"


def test_no_example_is_left_over() -> None:
    used = {(base.__name__, name) for model, name in KEYS for base in model.__mro__}
    assert {(model, name) for model, names in reference.EXAMPLES.items() for name in names} <= used


def test_links_lead_somewhere() -> None:
    page = reference.page()
    anchors = {reference.anchor(title) for title in re.findall(r"^#+ (.*)$", page, re.M)}
    for link in re.findall(r"\]\(([^)]*)\)", page):
        file, _, anchor = link.partition("#")
        assert (reference.PAGE.parent / file).exists() if file else anchor in anchors, link
