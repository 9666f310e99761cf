"""Texts of several documents in public corpora: the marker between two of them becomes the vocabulary's end piece."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build
from gatokit.tokenizers.text import TextTokenizer


def test_stories_and_pages_of_several_documents(tmp_path: Path, vocabulary: Path) -> None:
    """TinyStories is one text of all stories; OBELICS joins articles to a page."""
    stories = ["Once upon a time.\n", "\nThere was a red ball. " * 9, "\nThe end.\n"]
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join([*stories, "\n"]))
    texts = [["an article", "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED", "another one"]]
    pq.write_table(
        pa.table({"images": pa.array([[None] * 3], pa.list_(pa.binary())), "texts": texts}), tmp_path / "p.parquet"
    )
    datasets = [
        {"name": "stories", "kind": "text", "source": "stories.txt"},
        {"name": "pages", "kind": "interleaved", "format": "obelics", "source": "p.parquet"},
        {"name": "as_it_is", "kind": "text", "source": "stories.txt", "end_of_document": False},
    ]
    config = {"vocabulary": str(vocabulary), "chunk_tokens": 7, "holdout": 0, "datasets": datasets}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    build(tmp_path / "c.yaml", tmp_path / "out")
    assert verify(tmp_path / "out") == []
    text = TextTokenizer.load(vocabulary)
    found = {}
    for name, dataset in open_directory(tmp_path / "out").datasets.items():
        [document] = dataset.documents()
        found[name] = np.concatenate([record.sequence.tokens for record in document.records]).tolist()
    articles = "an article\n\n", "\n\nanother one"
    expected = {
        "stories": [id for story in stories for id in (*text.encode(story).tolist(), text.end_id)],
        "pages": [id for article in articles for id in (*text.encode(article).tolist(), text.end_id)],
        "as_it_is": text.encode((tmp_path / "stories.txt").read_text()).tolist(),
    }
    assert found == expected
