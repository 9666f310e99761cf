"""The table of what becomes of every field."""

from gatokit.inspection.tables.fields import field_rows
from gatokit.schemas.manifest import StepField, StepTokens


def test_fields_without_tokens_are_grouped_by_why() -> None:
    skipped = [StepField(path=f"observation/depth_{at}", why="skipped by the config") for at in range(7)]
    marks = [StepField(path=path, why=f"read as {path}") for path in ("is_first", "is_last")]
    step = StepTokens(
        tokens=16.0,
        text=4.0,
        fields=[
            StepField(path="observation/goal", becomes="text"),
            StepField(path="observation/state", becomes="continuous", tokens=10.0, components=10, constant=3),
            StepField(path="action", becomes="one of 4", tokens=1.0, components=1, constant=0),
            *skipped,
            *marks,
        ],
        cut=1200,
        splits={"train": 1200},
        left_out={"val": 3},
    )
    assert field_rows(step) == [
        ("observation/goal", "text", 4.0, "25.0%", ""),
        ("observation/state", "continuous", 10.0, "62.5%", "3 of 10 components constant"),
        ("action", "one of 4", 1.0, "6.2%", ""),
        ("a step", "with a separator", 16.0, "", "reads train (1,200); leaves out val (3); cuts 1,200 last steps"),
        (
            "observation/depth_0, observation/depth_1, observation/depth_2, observation/depth_3 and 3 more",
            "no tokens",
            0.0,
            "",
            "skipped by the config",
        ),
        ("is_first, is_last", "no tokens", 0.0, "", "read as such"),
    ]


def test_several_texts_have_their_tokens_together() -> None:
    texts = [StepField(path=f"observation/{name}", becomes="text") for name in ("goal", "hint")]
    rows = field_rows(StepTokens(tokens=5.0, text=4.0, fields=texts, cut=0, splits={}, left_out={}))
    assert rows == [
        ("observation/goal", "text", None, "", ""),
        ("observation/hint", "text", None, "", ""),
        ("all texts", "", 4.0, "80.0%", ""),
        ("a step", "with a separator", 5.0, "", ""),
    ]


def test_a_scan_does_not_know_the_tokens_of_texts() -> None:
    fields = [
        StepField(path="observation/goal", becomes="text"),
        StepField(path="action", becomes="continuous", tokens=1),
    ]
    rows = field_rows(StepTokens(tokens=None, text=None, fields=fields, cut=0, splits={}, left_out={}))
    assert rows[0] == ("observation/goal", "text", None, "", "")
    assert rows[-1] == ("a step", "with a separator", None, "", "")


def test_documents_have_no_table() -> None:
    assert field_rows(None) == []
