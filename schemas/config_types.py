"""The types that the models of configs are made of: names, numbers, sizes of images, and the keys of every dataset."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gatokit.schemas.tokens import PATCH


class ConfigModel(BaseModel):
    """A part of a config: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number. It may be a string: YAML reads 1e-3, without a point, as a string."""
    try:
        return isinstance(value, int | float | str) and not isinstance(value, bool) and math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]
Text = Annotated[str, Field(min_length=1)]
WholeNumber = Annotated[int, Field(strict=True)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Quality = Annotated[WholeNumber, Field(ge=1, le=100)]


def _multiples(value: Any) -> Any:
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value)):
        raise ValueError("must be [height, width] in pixels, two whole numbers")
    if any(side <= 0 or side % PATCH for side in value):
        near = [max(PATCH, PATCH * round(side / PATCH)) for side in value]
        raise ValueError(f"height and width must be multiples of {PATCH}; the nearest are {near}")
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_multiples)]
"""Height and width in pixels."""


class DatasetModel(ConfigModel):
    """The keys of every dataset."""

    name: Name
    """Names the dataset's directory in the build; no two datasets have the same one."""
    license: str | None = None
    """Is copied into the manifest and the card."""
    weight: Positive = 1.0
    """Share of the windows in training, relative to the other datasets."""
