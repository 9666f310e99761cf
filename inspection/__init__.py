"""Opens finished builds and scans: episodes, documents, tokens, decoded values, and whether every byte is right."""

from gatokit.inspection.preview import TaskPreview, preview
from gatokit.inspection.read.directory import DatasetReader, Directory, open_directory
from gatokit.inspection.read.index import EpisodeRow, TaskRow
from gatokit.inspection.read.stored import Step, StoredDocument, StoredEpisode
from gatokit.inspection.verify.directory import Fault

__all__ = [
    "DatasetReader",
    "Directory",
    "EpisodeRow",
    "Fault",
    "Step",
    "StoredDocument",
    "StoredEpisode",
    "TaskPreview",
    "TaskRow",
    "open_directory",
    "preview",
]
