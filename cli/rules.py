"""Keep rules that a command is given: a fraction of the expert return, or a rule as a config has it."""

import json
from typing import Any

import yaml

from gatokit.inspection.preview import Rule
from gatokit.schemas.config import Keep
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.reading import validated


def read_keep(text: str, option: str) -> Keep:
    """The rule of ``text``, YAML or JSON such as ``{best: 100}``; ConfigError, beginning with ``option``, where it is
    none."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{option}: is no YAML: {str(error).splitlines()[0]}; quote it as '{{best: 100}}'") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{option}: {text!r} is no rule; give one as a config has it, such as '{{best: 100}}'")
    return validated(Keep, content, option)


def read_rule(text: str, option: str) -> Rule:
    """A fraction, or the rule of ``read_keep``."""
    try:
        return float(text)
    except ValueError:
        return read_keep(text, option)


def as_json(rule: Rule) -> Any:
    """A fraction as it is, a rule as its config."""
    return rule if isinstance(rule, float) else rule.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def shown(rule: Rule) -> str:
    """A rule as a config has it."""
    if isinstance(rule, float):
        return f"{{min_return: {rule:g}}}"
    return "{" + ", ".join(f"{key}: {_plain(value)}" for key, value in as_json(rule).items()) + "}"


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
