"""The fixtures that put Google's stand-ins in Google's place. A folder's conftest imports those that it wants."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.google.storage import Blob, StorageServer


@dataclass(frozen=True)
class Bucket:
    """One bucket of a storage server. Faults and the log of requests are the server's: ``bucket.server.fail(...)``."""

    server: StorageServer
    name: str = "bucket"

    def url(self, name: str = "") -> str:
        """``gs://bucket/name``."""
        return f"gs://{self.name}/{name}"

    def put(self, name: str, data: bytes) -> Blob:
        """Stores an object."""
        return self.server.put(self.name, name, data)

    def get(self, name: str) -> bytes:
        """An object's bytes; KeyError without one."""
        return self.blob(name).data

    def blob(self, name: str) -> Blob:
        """An object with its generation and checksums; KeyError without one."""
        return self.server.objects[self.name, name]

    def remove(self, name: str) -> None:
        """Deletes an object; KeyError without one."""
        self.server.remove(self.name, name)

    def names(self, prefix: str = "") -> list[str]:
        """Names that begin so, in the service's order."""
        return self.server.names(self.name, prefix)


class _Clock:
    """``time`` for the retrying code: sleeping takes no time and moves the clock on, so that deadlines still come."""

    def __init__(self) -> None:
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.slept


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """Retries of Google's clients and of Beam's without their delays, in this process.

    google-api-core waits up to 1, 2, 4 ... seconds (``DEFAULT_RETRY``: for 120 seconds), Beam's own decorator 5, 10,
    20 ... seconds seven times. Both sleep by ``time.sleep`` of their own module's ``time``, which is replaced here
    by a clock that a sleep moves on: an outage without an end still ends in ``RetryError`` after a few dozen
    requests. ``slept`` adds up what would have been waited. Nothing of this reaches a child process: inject a single
    fault there, its delay is at most a second.
    """
    import apache_beam.utils.retry
    import google.api_core.retry  # noqa: F401

    clock = _Clock()
    for module in ("retry_base", "retry_unary", "retry_streaming"):
        monkeypatch.setattr(sys.modules[f"google.api_core.retry.{module}"], "time", clock)
    monkeypatch.setattr(apache_beam.utils.retry.Clock, "sleep", lambda _self, seconds: clock.sleep(seconds))
    return clock


@pytest.fixture
def google_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search for credentials: without this ``GcsIO`` asks a metadata server that is not there for 20 seconds,
    whatever ``--no_auth`` says. Child processes get ``NO_GCE_CHECK`` and a project; they too must set
    ``_credentials_init`` or spend a moment on finding nothing."""
    import apache_beam.internal.gcp.auth as auth

    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(auth._Credentials, "_credentials", None)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, google_environment: None, impatient: _Clock) -> Iterator[Bucket]:
    """An empty bucket ``gs://bucket`` that Google's client and Beam's ``FileSystems`` reach in place of the service.

    A client reads ``STORAGE_EMULATOR_HOST`` when it is made; ``GcsIO`` makes one for every operation.
    """
    with StorageServer("bucket") as server:
        # The host must be "localhost", not 127.0.0.1.
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield Bucket(server)
