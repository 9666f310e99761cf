"""docs/training.md knows every field of a run config."""

import re
from pathlib import Path

from pydantic import BaseModel

from gatokit.schemas.run import RunConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        inner = isinstance(kind, type) and issubclass(kind, BaseModel)
        found += fields(kind, f"{prefix}{name}.") if inner else [prefix + name]  # type: ignore[arg-type]
    return found


def test_the_table_has_every_field_in_order() -> None:
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \|", PAGE.read_text(), re.M)
    assert rows == fields(RunConfig)
