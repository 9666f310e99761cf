"""COCO captions (cocodataset.org): a JSON file of ``images`` and ``annotations``, and a folder of pictures."""

from collections.abc import Iterator
from typing import Any

from gatokit.pipelines.documents.descriptions import Descriptions, Id, id_of, key_of, read_lists, text_of
from gatokit.pipelines.documents.image_folder import Caption, PictureFolderFile
from gatokit.schemas.errors import RejectedError

_HINT = "give a captions JSON of COCO, such as captions_train2017.json (test sets have no captions)"


class CocoFile(PictureFolderFile):
    """A captions JSON file; every annotation is a document, and its id the key."""

    def captions(self) -> Iterator[Caption]:
        """See ``PictureFolderFile``."""
        names: dict[Id, str] = {}
        documents = Descriptions()

        def image(entry: Any) -> None:
            try:
                id = id_of(entry, "id")
                names[id] = text_of(entry, "file_name")
            except RejectedError:
                return  # its annotations say so
            documents.picture(id)

        def annotation(entry: Any) -> None:
            key = f"annotations[{len(documents)}]"
            try:
                key = key_of(id_of(entry, "id"))
                documents.add(key, text_of(entry, "caption"), id_of(entry, "image_id"))
            except RejectedError as error:
                documents.reject(key, error)

        read_lists(self.path, self.name, {"images": image, "annotations": annotation}, _HINT)
        for document in documents:
            why = document.why
            name = names.get(document.picture)
            if why is None and name is None:
                wanted = f"id {document.picture!r:.200} and a file_name"
                why = RejectedError("missing_field", f"`images` has no entry with {wanted}")
            yield Caption(document.key, document.text, name or "", why)
