"""Opens finished builds and scans: episodes, documents, tokens, decoded values, and whether every byte is right."""

from gatokit.inspection.dataset import DatasetReader
from gatokit.inspection.directory import Directory, open_directory
from gatokit.inspection.document import StoredDocument
from gatokit.inspection.episode import Step, StoredEpisode
from gatokit.inspection.preview import TaskPreview, preview
from gatokit.inspection.rows import EpisodeRow, TaskRow
from gatokit.inspection.verify import Fault, verify

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
    "verify",
]
