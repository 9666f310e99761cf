"""The values of one tensor field (discrete or continuous, observation or action) ↔ its ids.

Legend: S time steps, N components of one step in row-major order.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.spec import FieldSpec
from gatokit.tokenizers import continuous, discrete

_DTYPE_KINDS = {"continuous": "fiub", "discrete": "iub"}


class TensorTokenizer:
    """Encodes and decodes one field as its spec says."""

    def __init__(self, field: FieldSpec, discrete_offset: int) -> None:
        """Raises ConfigError, naming the field, for a range or ``num`` that cannot be used."""
        self.field = field
        self.components = math.prod(field.shape)
        """N, the tokens of one step."""
        path = field.path
        if field.kind == "discrete":
            num = 2 if field.dtype == "bool" else field.num
            if num is not None and num < 1:
                raise ConfigError(f"field {path} has num {num}: a discrete field has at least one value")
            self.encode: Callable[[np.ndarray, np.ndarray], None] = partial(
                discrete.encode, num=num, offset=discrete_offset, path=path
            )
            """Writes the ids of values (S, N) to uint16 (S, N), which may be strided; raises RejectedError."""
            self._decode: Callable[[np.ndarray], np.ndarray] = partial(
                discrete.decode, num=num, offset=discrete_offset, path=path
            )
        elif field.is_action:
            scale = continuous.ActionRange.of(field.range, self.components, path=path)
            self.encode = partial(continuous.encode_action, scale=scale, path=path)
            self._decode = partial(continuous.decode_action, scale=scale, path=path)
        else:
            self.encode = partial(continuous.encode_observation, path=path)
            self._decode = partial(continuous.decode_observation, path=path)

    def checked(self, values: Any, steps: int) -> np.ndarray:
        """The values of S ``steps`` as (S, N); RejectedError ``wrong_shape`` for another shape or sort of dtype."""
        field = self.field
        if not isinstance(values, np.ndarray):
            raise RejectedError("wrong_shape", f"field {field.path} is a {type(values).__name__}, not an array")
        if values.shape != (steps, *field.shape):
            raise RejectedError(
                "wrong_shape", f"field {field.path} has shape {values.shape}, not {(steps, *field.shape)}"
            )
        if values.dtype.kind not in _DTYPE_KINDS[field.kind]:
            raise RejectedError("wrong_shape", f"field {field.path} is {field.kind} and has dtype {values.dtype}")
        return values.reshape(steps, self.components)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """The values (S, *shape) of ids (S, N): float64, or int64, or bool where the field's dtype is bool.

        Raises ValueError, naming the field, for an id of no value.
        """
        values = self._decode(tokens)
        if self.field.dtype == "bool" and self.field.kind == "discrete":
            values = values.astype(np.bool_)
        return values.reshape(len(tokens), *self.field.shape)
