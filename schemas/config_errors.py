"""What to say of a YAML file that does not parse or does not validate."""

from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gatokit.schemas.words import did_you_mean


def explain_yaml(error: Exception) -> str:
    """The line and what is wrong there, to follow the name of the file."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}: " if mark else ": "
    if isinstance(error, yaml.constructor.ConstructorError) and problem:
        tag = str(problem).partition("could not determine a constructor for the tag ")[2]
        return where + (f"the tag {tag} is not allowed; write a plain value" if tag else str(problem))
    context = getattr(error, "context", None)
    what = ", ".join(str(part) for part in (context, problem) if part) or str(error).splitlines()[0]
    return f"{where}this is not valid YAML: {what}"


_KINDS = ("episodes", "text", "image_text", "image_question_answer", "interleaved")
_MOST_ERRORS = 2
_MESSAGES = {
    "missing": "this key is required",
    "invalid_key": "must be a string; quote it",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "bool_type": "must be true or false",
    "string_pattern_mismatch": "must be letters, digits, '_', '.' and '-', and begin with a letter or digit",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
}


def explain(model: type[BaseModel], error: ValidationError) -> tuple[str, str | None]:
    """What is wrong with the first two fields, and the way out if it is one field and it has one."""
    errors = error.errors()
    # A list whose items failed is reported as too short as well.
    inner = {item["loc"][:length] for item in errors for length in range(len(item["loc"]))}
    problems = [item for item in errors if not (item["type"] == "too_short" and item["loc"] in inner)]
    more = len(problems) - _MOST_ERRORS
    sentences = [_sentence(model, item) for item in problems[:_MOST_ERRORS]]
    way_out = None
    if len(problems) == 1 and "; " in sentences[0]:
        sentences[0], _, way_out = sentences[0].rpartition("; ")
    return "; ".join(sentences) + (f"; and {more} more" if more > 0 else ""), way_out


def _sentence(model: type[BaseModel], item: Any) -> str:
    path, location, type_, value = "", item["loc"], item["type"], item["input"]
    for place, part in enumerate(location):
        # Behind a dataset's number pydantic says which kind it took it for.
        is_kind = part in _KINDS and place == 2 and location[0] == "datasets"
        if not is_kind and part != "[key]":
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    message = _MESSAGES.get(type_, item["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if type_ == "missing":
        return f"{path}: {message}"
    if type_ == "extra_forbidden":
        return f"{path}: {_unknown_key(model, location)}"
    if type_ == "union_tag_not_found":
        return f"{path}.kind: {_MESSAGES['missing']}"
    if type_ == "union_tag_invalid":
        path, value = f"{path}.kind", value.get("kind")
        message = "must be " + ", ".join(map(repr, _KINDS))
    if type_ == "string_type":
        message = "must be a string" + ("" if value is None or isinstance(value, list | dict) else "; quote it")
    if not path:
        return message
    shown = repr(value)
    return f"{path}: {message} (got {shown if len(shown) <= 60 else shown[:57] + '...'})"


def _unknown_key(model: type[BaseModel], location: tuple[Any, ...]) -> str:
    """What to say of the key at the end of ``location``, which the models there do not have."""
    models, key = [model], location[-1]
    for part in location[:-1]:
        below = [item for each in models for item in _models(_fields(each).get(part))]
        tagged = [each for each in models if part in get_args(_fields(each).get("kind"))]
        models = below or tagged or models
    known = [name for each in models for name in _fields(each)]
    return f"unknown key; {did_you_mean(str(key), known) or 'remove it or check its spelling'}"


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type: ``list[A] | B`` has A and B."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
