"""What each field of a step should become, judged by its dtype, its shape and its values."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gatokit.pipelines.describe.candidates import instruction_rank
from gatokit.pipelines.describe.source import TERMINATES, Description
from gatokit.pipelines.describe.statistics import DescribedField, plain
from gatokit.schemas.tokens import DISCRETE_VALUES, PATCH

FLAGS = ("is_first", "is_last", "is_terminal", "reward", "discount")
"""Fields of a step that a build reads for themselves."""
STEP_TOKENS = 512
"""Images are made smaller until a step has at most this many tokens, so that a window of 1,024 holds two."""
WIDE = 256
"""A field of more numbers than this is skipped."""
_LONGEST_TEXT = 2000
_OUTLIER = 4
"""A range that is this many times wider than its middle 98 percent is taken from quantiles."""

Rule = tuple[dict[str, Any], str]
SKIP = {"as": "skip"}


def field_rules(found: Description, dataset: dict[str, Any], complaints: list[str]) -> dict[str, Rule]:
    """A rule and its reason for each field of a step; of fields that differ between directories the first decides."""
    rules: dict[str, Rule] = {}
    named = observed(dataset)
    for item in found.fields:
        head = item.path.split("/")[0]
        if not item.in_steps or item.path in rules or item.path in FLAGS:
            continue
        if head == "action" or item.path in dataset.get("action", ()):
            rules[item.path] = _action_rule(item, found)
        elif head == "observation" or item.path in named:
            rules[item.path] = _observation_rule(item, found)
    _drop_second_instruction(found, rules, named)
    actions = [path for path in rules if path.split("/")[0] == "action" or path in dataset.get("action", ())]
    if actions and all(rules[path][0] == SKIP for path in actions):
        complaints.append("no action is left: " + "; ".join(f"{path} {rules[path][1]}" for path in actions))
    _fit_images(found, rules)
    return rules


def observed(dataset: dict[str, Any]) -> list[str]:
    """The paths that ``observe`` of a dataset names."""
    return [path for entry in dataset.get("observe", ()) for path in ([entry] if isinstance(entry, str) else entry)]


def _observation_rule(item: DescribedField, found: Description) -> Rule:
    source, values, name = item.source, item.statistics, item.path.split("/")[-1].lower()
    if problem := _unusable(item, found):
        return SKIP, problem
    if source.form == "ragged" and not values.frame_a_step:
        fewest, most = values.lengths or (0, 0)
        return SKIP, f"has {fewest} to {most} values a step; or give {{max_length: {most}}}"
    if source.form == "string" and values.frame is None:
        return _text_rule(item, found)
    if values.is_text:
        return {"as": "text"}, "codes of characters"
    size = _pixels(item)
    if size is not None and values.black == 1:
        return SKIP, "is black in all frames"
    if size is not None and _is_depth(item):
        low, high = values.q01 or 0.0, values.q99 or 0.0
        if low >= high:
            return SKIP, "holds one depth only"
        return {
            "as": "depth",
            "range": [plain(float(f"{end:.4g}")) for end in (low, high)],
            "images": {"size": size},
        }, ""
    if size is not None and (values.frame_a_step or source.form in ("image", "string") or _is_picture(item)):
        is_default = source.form in ("image", "video") or (
            source.dtype == "uint8" and source.sides[-1:] in ((1,), (3,))
        )
        return ({} if is_default and source.dtype == "uint8" else {"as": "image"}) | {"images": {"size": size}}, ""
    count = math.prod(source.sides)
    if "success" in name and values.steady:
        return SKIP, "tells the outcome of the episode"
    if "embed" in name:
        return SKIP, f"is an embedding, {count} numbers a step"
    if count > WIDE:
        return SKIP, f"has {count:,} numbers a step"
    if values.constant == 1 and found.seen > 1:
        return SKIP, f"never changes: {item.span}"
    return _number_rule(item, found)


def _unusable(item: DescribedField, found: Description) -> str | None:
    source, values = item.source, item.statistics
    if source.form == "unreadable":
        return f"is a {source.type_name}"
    if values.missing is not None:
        return f"cannot be read in every episode: {values.missing}"
    if not values.episodes:
        return "was not looked at, for no episode has it"
    if values.not_finite and _pixels(item) is None:
        return f"holds NaN or infinite numbers ({values.not_finite:.2%})"
    return None


def _text_rule(item: DescribedField, found: Description) -> Rule:
    values = item.statistics
    if item.source.shape:
        return SKIP, "is a list of texts"
    if not values.is_text:
        return SKIP, "is no UTF-8 text"
    if values.empty == 1:
        return SKIP, "is always empty"
    if values.constant == 1 and found.seen > 1:
        return SKIP, f"is always {item.example}"
    if (values.longest or 0) > _LONGEST_TEXT:
        return SKIP, f"is long, up to {values.longest:,} characters"
    return {}, ""


def _number_rule(item: DescribedField, found: Description) -> Rule:
    """Of whole numbers: discrete where they fit, also with the values of episodes that were not looked at."""
    source, values = item.source, item.statistics
    if source.dtype == "bool" or np.dtype(source.dtype).kind == "f":
        return {}, ""
    low, high = int(values.min or 0), int(values.max or 0)
    limit = DISCRETE_VALUES if found.is_all else DISCRETE_VALUES // 2
    if low >= 0 and high < limit:
        return {"as": "discrete"} if _looks_like_picture(item) else {}, ""
    if low < 0 and high - low < limit and found.is_all:
        return {"as": "discrete", "offset": low}, "begins below zero"
    return {"as": "continuous"}, f"{item.span} does not fit {DISCRETE_VALUES:,} values"


def _action_rule(item: DescribedField, found: Description) -> Rule:
    source, values = item.source, item.statistics
    if problem := _unusable(item, found):
        return SKIP, problem
    if source.form != "tensor":
        return SKIP, "is no number"
    if item.path != "action" and TERMINATES.search(item.path.split("/")[-1]):
        return SKIP, "tells that the episode ends, which is_last does"
    if item.path != "action" and values.constant == 1 and found.seen > 1:
        return SKIP, f"never changes: {item.span}"
    rule, why = _number_rule(item, found)
    if rule.get("as") != "continuous" and np.dtype(source.dtype).kind != "f":
        return rule, why
    each = values.components
    if each is None:
        return rule | {"range": "data"}, item.span
    widths = [np.array(each[high]) - np.array(each[low]) for low, high in (("low", "high"), ("q01", "q99"))]
    if np.any(widths[0] > _OUTLIER * np.maximum(widths[1], 1e-9)):
        why = f"{item.span}, but 98 % of the values of a component are in a small part of it"
        return rule | {"range": {"quantiles": [0.01, 0.99]}, "clip": True}, why
    if found.is_all and (values.min or 0) >= -1 and 0.5 < max(-(values.min or 0), values.max or 0) <= 1:
        return rule | {"range": [-1, 1]}, item.span
    return rule | {"range": "data"}, item.span


def _drop_second_instruction(found: Description, rules: dict[str, Rule], named: Iterable[str]) -> None:
    """Of several instructions that do not change in an episode the first is enough."""
    used = [
        item
        for item in found.fields
        if rules.get(item.path, (SKIP, ""))[0] != SKIP
        and item.belongs_to == "step"
        and item.is_text
        and item.statistics.steady
        and any(word in item.path.split("/")[-1] for word in ("instruct", "language"))
    ]
    used.sort(key=lambda item: (item.path not in named, instruction_rank(item.path.split("/")[-1]) or 0))
    for item in used[1:]:
        if item.path not in named:
            rules[item.path] = SKIP, f"says the same as {used[0].path}, which is used"


def _fit_images(found: Description, rules: dict[str, Rule]) -> None:
    """Sizes of images: the nearest multiples of 16, or smaller in equal parts, so that a step fits; depths go first."""
    native = {item.path: _pixels(item) or [PATCH, PATCH] for item in found.fields}
    sized = [path for path, (rule, _) in rules.items() if "images" in rule]
    other = sum(
        item.estimated_tokens
        for item in found.fields
        if item.path in rules and item.path not in sized and rules[item.path][0] != SKIP
    )
    if other + _patches(_scaled(native, sized, 1.0)) > STEP_TOKENS:
        for path in [path for path in sized if rules[path][0].get("as") == "depth"]:
            size = _scaled(native, [path], 1.0)[path]
            use = f"{{as: depth, range: {rules[path][0]['range']}, images: {{size: {size}}}}}"
            rules[path] = SKIP, f"is a depth map, too many tokens beside the images; or give {use}"
            sized.remove(path)
    nearest = _scaled(native, sized, 1.0)
    fitted = _fitted(native, sized, STEP_TOKENS - other)
    for path, size in fitted.items():
        rule, why = rules[path]
        recorded = f"{native[path][0]}x{native[path][1]} as recorded"
        if fitted != nearest:
            recorded += f"; {nearest[path]} is nearest, {_patches(nearest):,} tokens a step with the other images"
        is_default = size == native[path] and rule.keys() == {"images"}
        keep = {} if is_default else {"images": {"size": size}}
        rules[path] = {key: value for key, value in rule.items() if key != "images"} | keep, why or recorded


def _fitted(native: dict[str, list[int]], paths: Sequence[str], budget: int) -> dict[str, list[int]]:
    """Sizes of together at most ``budget`` patches, if that is possible: the largest that keep the shapes well."""
    best, best_score = _scaled(native, paths, 0.0), 0.0
    for step in range(100, 4, -1):
        sizes = _scaled(native, paths, step / 100)
        patches = _patches(sizes)
        bent = [abs(math.log(sizes[path][0] / sizes[path][1] * native[path][1] / native[path][0])) for path in paths]
        score = patches * (1 - 2 * max(bent, default=0.0))
        if step == 100 and patches <= budget:
            return sizes
        if patches <= budget and score > best_score:
            best, best_score = sizes, score
    return best


def _scaled(native: dict[str, list[int]], paths: Iterable[str], scale: float) -> dict[str, list[int]]:
    """The multiples of 16 that are nearest to the sizes in pixels times ``scale``."""
    return {path: [max(PATCH, PATCH * round(side * scale / PATCH)) for side in native[path]] for path in paths}


def _patches(sizes: dict[str, list[int]]) -> int:
    return sum(height // PATCH * (width // PATCH) for height, width in sizes.values())


def _pixels(item: DescribedField) -> list[int] | None:
    """Height and width of an image or a map as recorded; None if it is neither, or smaller than a patch."""
    shape = item.statistics.frame or item.source.sides
    if item.source.form == "tensor":
        shape = item.source.sides
        if len(shape) == 3 and shape[2] not in (1, 2, 3, 4) and shape[0] in (1, 3, 4):
            shape = (shape[1], shape[2], shape[0])
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
            return None
    if len(shape) < 2 or min(shape[:2]) < PATCH:
        return None
    return [int(shape[0]), int(shape[1])]


def _is_depth(item: DescribedField) -> bool:
    is_wide = item.source.dtype not in ("uint8", "str")
    channels = (*(item.statistics.frame or item.source.sides), 1)[2]
    is_single = item.source.form in ("image", "video") and channels == 1
    return is_wide and ("depth" in item.path.lower() or (is_single and item.source.dtype == "uint16"))


def _is_picture(item: DescribedField) -> bool:
    """Whether an array of an image's shape holds pixels."""
    has_colours = len(item.source.sides) == 3 and (item.source.sides[2] in (3, 4) or item.source.sides[0] in (3, 4))
    is_named = bool(re.search("image|rgb|pixel|camera|frame", item.path.lower()))
    return has_colours and (item.source.dtype == "uint8" or (item.source.dtype.startswith("float") and is_named))


def _looks_like_picture(item: DescribedField) -> bool:
    """Whether the build would take small whole numbers for an image."""
    sides = item.source.sides
    return item.source.dtype == "uint8" and len(sides) == 3 and sides[2] in (1, 3)
