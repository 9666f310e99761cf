"""The storage stand-in, driven by Google's own client and by Beam's ``FileSystems``."""

import hashlib

import pytest
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from tests.google.fixtures import Bucket
from tests.google.storage import QUANTUM, crc32c

BODY = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(40_000))


def client():
    from google.cloud import storage

    return storage.Client.create_anonymous_client().bucket("bucket")


def write(url: str, data: bytes) -> None:
    with FileSystems.create(url, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write(data)


def test_beam_lists_thousands_of_objects_over_several_pages(bucket: Bucket) -> None:
    names = [f"data/{number:05}.bin" for number in range(3_210)]
    for name in names:
        bucket.put(name, b"x")
    bucket.put("other/0", b"")
    found = FileSystems.match([bucket.url("data/*.bin")])[0].metadata_list
    assert [item.path for item in found] == [bucket.url(name) for name in names]
    assert {item.size_in_bytes for item in found} == {1}
    pages = bucket.server.requests("GET", "prefix=data/")
    assert len(pages) == 4
    assert [page.query.get("pageToken") is None for page in pages] == [True, False, False, False]


def test_a_listing_by_delimiter_counts_folders_into_its_pages(bucket: Bucket) -> None:
    for name in ("a/1", "a/2", "b", "c/1", "c/d/2", "e", "é", "z z", "~"):
        bucket.put(name, b"")
    bucket.server.page_size = 2
    listing = client().list_blobs(delimiter="/")
    assert [blob.name for blob in listing] == ["b", "e", "z z", "~", "é"]
    assert listing.prefixes == {"a/", "c/"}
    assert [blob.name for blob in client().list_blobs(prefix="c/")] == ["c/1", "c/d/2"]
    assert [blob.name for blob in client().list_blobs(start_offset="c/d", end_offset="z")] == ["c/d/2", "e"]


@pytest.mark.parametrize("name", ["plain", "a/b c/ü#?&=%2F+.bin", "../up", "a//b", "語" * 50], ids=range(5))
def test_names_of_every_kind_pass(bucket: Bucket, name: str) -> None:
    write(bucket.url(name), b"data")
    assert bucket.names() == [name]
    assert FileSystems.open(bucket.url(name), compression_type=CompressionTypes.UNCOMPRESSED).read() == b"data"
    assert FileSystems.exists(bucket.url(name))
    assert [blob.name for blob in client().list_blobs()] == [name]
    FileSystems.rename([bucket.url(name)], [bucket.url("there")])
    assert bucket.names() == ["there"]
    FileSystems.delete([bucket.url("there")])
    assert bucket.names() == []
    assert not FileSystems.exists(bucket.url(name))


def test_beam_reads_ranges(bucket: Bucket) -> None:
    bucket.put("big", BODY)
    with FileSystems.open(bucket.url("big"), compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file._chunk_size = 1000
        assert file.read(10) == BODY[:10]
        file.seek(900_000)
        assert file.read(50) == BODY[900_000:900_050]
        file.seek(-5, 2)
        assert file.read() == BODY[-5:]
        assert file.read(1) == b""
    ranges = [request.headers["Range"] for request in bucket.server.requests("GET", "alt=media")]
    assert ranges[:2] == ["bytes=0-1000", "bytes=900000-901000"]
    assert client().blob("big").download_as_bytes(start=7, end=9) == BODY[7:10]


def test_beam_writes_in_chunks_and_nothing_appears_before_the_end(bucket: Bucket) -> None:
    file = FileSystems.create(bucket.url("big"), compression_type=CompressionTypes.UNCOMPRESSED)
    file._chunk_size = QUANTUM
    file.write(BODY)
    assert bucket.names() == []
    assert bucket.server.open_uploads == 1
    file.close()
    assert bucket.get("big") == BODY
    assert len(bucket.server.requests("PUT")) == len(BODY) // QUANTUM + 1
    assert FileSystems.checksum(bucket.url("big")) == crc32c(BODY)
    assert FileSystems.match([bucket.url("big")])[0].metadata_list[0].size_in_bytes == len(BODY)


def test_an_exception_leaves_no_object(bucket: Bucket) -> None:
    def work() -> None:
        with FileSystems.create(bucket.url("half"), compression_type=CompressionTypes.UNCOMPRESSED) as file:
            file._chunk_size = QUANTUM
            file.write(BODY)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert bucket.names() == []
    # Google's client does not cancel it; the service forgets it after a week.
    assert bucket.server.open_uploads == 1


def test_the_clients_own_uploads(bucket: Bucket) -> None:
    blob = client().blob("small")
    blob.metadata = {"key": "value"}
    blob.upload_from_string(b"\r\n--\r\n\n" + BODY[:1000] + b"\r")
    assert bucket.get("small") == b"\r\n--\r\n\n" + BODY[:1000] + b"\r"
    assert bucket.server.requests("POST")[0].query["uploadType"] == "multipart"
    assert client().get_blob("small").metadata == {"key": "value"}
    blob = client().blob("empty")
    blob.upload_from_string(b"")
    assert bucket.get("empty") == b""
    assert client().blob("empty").download_as_bytes() == b""
    assert client().get_blob("none") is None
    assert client().get_blob("small").md5_hash == bucket.blob("small").md5


def test_only_one_of_two_creates_an_object(bucket: Bucket) -> None:
    from google.api_core.exceptions import PreconditionFailed

    client().blob("lock").upload_from_string(b"first", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        client().blob("lock").upload_from_string(b"second", if_generation_match=0)
    assert bucket.get("lock") == b"first"
    generation = bucket.blob("lock").generation
    with pytest.raises(PreconditionFailed):
        client().delete_blob("lock", if_generation_match=generation + 1)
    client().delete_blob("lock", if_generation_match=generation)
    assert bucket.names() == []


def test_a_resumable_upload_loses_to_an_object_that_came_meanwhile(bucket: Bucket) -> None:
    from google.cloud.storage.exceptions import InvalidResponse

    file = client().blob("lock").open("wb", chunk_size=QUANTUM, if_generation_match=0)
    file.write(BODY)
    bucket.put("lock", b"other")
    # Google's writer does not translate what an upload's last chunk is answered.
    with pytest.raises(InvalidResponse) as refused:
        file.close()
    assert refused.value.response.status_code == 412
    assert bucket.get("lock") == b"other"


def test_copies(bucket: Bucket) -> None:
    bucket.put("a", b"1")
    bucket.put("b", b"2")
    client().blob("both").compose([client().blob("a"), client().blob("b")])
    FileSystems.copy([bucket.url("both")], [bucket.url("copy")])
    assert bucket.get("copy") == b"12"
    from google.cloud import storage

    there = storage.Client.create_anonymous_client().bucket("bucket")
    there.copy_blob(there.blob("a"), there, "c")
    assert bucket.names() == ["a", "b", "both", "c", "copy"]
    assert client().exists()
    assert not storage.Client.create_anonymous_client().bucket("other").exists()


def test_beam_deletes_many_in_batches(bucket: Bucket) -> None:
    for number in range(250):
        bucket.put(f"x/{number}", b"")
    FileSystems.delete([bucket.url("x/*")])
    assert bucket.names() == []
    assert len(bucket.server.requests("POST", "batch")) == 3
    assert len(bucket.server.requests("DELETE")) == 250


@pytest.mark.parametrize("status", [429, 500, 503])
def test_faults_are_retried_without_delay(bucket: Bucket, impatient, status: int) -> None:
    bucket.put("a", BODY)
    listing = bucket.server.fail(3, status, "GET", r"/o\?.*prefix")
    reading = bucket.server.fail(2, status, "GET", "alt=media")
    writing = bucket.server.fail(2, status, "PUT", "upload_id")
    assert len(FileSystems.match([bucket.url("*")])[0].metadata_list) == 1
    with FileSystems.open(bucket.url("a"), compression_type=CompressionTypes.UNCOMPRESSED) as file:
        assert file.read() == BODY
    write(bucket.url("b"), BODY)
    assert bucket.get("b") == BODY
    assert (listing.hits, reading.hits, writing.hits) == (3, 2, 2)
    assert impatient.slept > 0


def test_an_outage_without_an_end_ends_in_an_error(bucket: Bucket) -> None:
    outage = bucket.server.fail(1_000_000, 503)
    with pytest.raises(BeamIOError):
        FileSystems.match([bucket.url("*")])
    assert 2 < outage.hits < 200


def test_a_truncated_download_is_read_again(bucket: Bucket) -> None:
    bucket.put("a", BODY)
    fault = bucket.server.truncate(2, keep=1000)
    with FileSystems.open(bucket.url("a"), compression_type=CompressionTypes.UNCOMPRESSED) as file:
        assert file.read() == BODY
    assert fault.hits == 2
    bucket.server.truncate(1, keep=70_000)
    assert client().blob("a").download_as_bytes() == BODY


def test_a_slow_download_arrives_whole(bucket: Bucket) -> None:
    bucket.put("a", BODY[:10_000])
    fault = bucket.server.trickle(piece=7)
    with FileSystems.open(bucket.url("a"), compression_type=CompressionTypes.UNCOMPRESSED) as file:
        assert file.read() == BODY[:10_000]
    assert fault.hits == 1


def test_a_connection_that_breaks_during_an_upload(bucket: Bucket) -> None:
    bucket.server.drop(1, after=QUANTUM + 5, method="PUT")
    write(bucket.url("a"), BODY)
    assert bucket.get("a") == BODY
    fault = bucket.server.lose_answer(1, "PUT")
    write(bucket.url("b"), BODY)
    assert fault.hits == 1
    assert bucket.get("b") == BODY


def test_a_flipped_byte_is_noticed_by_the_service(bucket: Bucket) -> None:
    from google.cloud.exceptions import BadRequest
    from google.cloud.storage.exceptions import InvalidResponse

    bucket.server.flip(1)
    with pytest.raises(BadRequest, match="crc32c"):
        client().blob("a").upload_from_string(BODY[:100])
    assert bucket.names() == []
    bucket.server.flip(1, at=-1)
    with pytest.raises(InvalidResponse) as refused:
        write(bucket.url("a"), BODY)
    assert refused.value.response.status_code == 400
    assert bucket.names() == []


def test_a_flipped_byte_that_the_service_misses_shows_in_its_checksum(bucket: Bucket) -> None:
    bucket.server.trusting = True
    bucket.server.flip(1, at=3)
    client().blob("a").upload_from_string(BODY[:100])
    assert bucket.get("a") != BODY[:100]
    assert FileSystems.checksum(bucket.url("a")) == crc32c(bucket.get("a")) != crc32c(BODY[:100])


def test_heal_forgets_faults(bucket: Bucket) -> None:
    bucket.server.fail(1_000_000)
    bucket.server.heal()
    assert FileSystems.match([bucket.url("*")])[0].metadata_list == []


def test_options_reach_the_file_system(bucket: Bucket) -> None:
    FileSystems.set_options(PipelineOptions([]))
    assert FileSystems.match([bucket.url("none*")])[0].metadata_list == []
