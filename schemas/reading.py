"""Reads a YAML file into a model; every error names the file, the field's path, the value and what is allowed."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gatokit.schemas.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: str | Path, model: type[Model], keys: str) -> Model:
    """The model whose YAML is the file at ``path``; ``keys`` says in an error what such a file holds.

    ConfigError where it cannot be read, is no YAML or does not validate.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the config is no UTF-8 text: {error}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}; give the path of a YAML file") from None
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}{_yaml_sentence(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping with {keys}")
    return validated(model, content, str(path))


def validated(model: type[Model], content: dict[str, Any], name: str) -> Model:
    """The model of ``content``; ConfigError, which begins with ``name``, where it does not validate."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_sentences(error)}") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} stands twice; remove one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node


def _yaml_sentence(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}: " if mark else ": "
    if isinstance(error, yaml.constructor.ConstructorError) and problem:
        tag = str(problem).partition("could not determine a constructor for the tag ")[2]
        return where + (f"the tag {tag} is not allowed; write a plain value" if tag else str(problem))
    context = getattr(error, "context", None)
    what = ", ".join(str(part) for part in (context, problem) if part) or str(error).splitlines()[0]
    return f"{where}this is no valid YAML: {what}"


_KINDS = ("episodes", "text", "image_text", "image_question_answer", "interleaved")
_MOST_ERRORS = 2
_MESSAGES = {
    "extra_forbidden": "unknown key; remove it or check its spelling",
    "missing": "this key is required",
    "invalid_key": "must be a string; quote it",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "bool_type": "must be true or false",
    "string_pattern_mismatch": "must be letters, digits, '_', '.' and '-', and begin with a letter or digit",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
}


def _sentences(error: ValidationError) -> str:
    errors = error.errors()
    # A list whose items failed is reported as too short as well.
    inner = {item["loc"][:length] for item in errors for length in range(len(item["loc"]))}
    errors = [item for item in errors if not (item["type"] == "too_short" and item["loc"] in inner)]
    more = len(errors) - _MOST_ERRORS
    return "; ".join(map(_sentence, errors[:_MOST_ERRORS])) + (f"; and {more} more" if more > 0 else "")


def _sentence(item: Any) -> str:
    path = ""
    # Behind a dataset's number pydantic says which kind it took it for.
    for place, part in enumerate(item["loc"]):
        if part in _KINDS and place == 2 and item["loc"][0] == "datasets":
            continue
        if part != "[key]":
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    value, message = item["input"], _MESSAGES.get(item["type"], item["msg"])
    if item["type"] == "model_attributes_type":
        message = "must be a mapping"
    if item["type"].startswith("union_tag_"):
        path = f"{path}.kind"
        missing = item["type"] == "union_tag_not_found"
        value = value.get("kind")
        message = "this key is required" if missing else "must be " + ", ".join(map(repr, _KINDS))
        if missing:
            return f"{path}: {message}"
    if item["type"] == "string_type":
        message = "must be a string" + ("" if value is None or isinstance(value, list | dict) else "; quote it")
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    if item["type"] in ("extra_forbidden", "missing") or not path:
        return f"{path}: {message}" if path else message
    shown = repr(value)
    return f"{path}: {message} (got {shown if len(shown) <= 60 else shown[:57] + '...'})"
