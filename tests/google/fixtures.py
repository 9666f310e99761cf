"""The fixtures that put Google's stand-ins in Google's place. A folder's conftest imports those that it wants."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.google.dataflow import DataflowServer
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

    def time(self) -> float:
        return time.time() + self.slept


class _Ticking(_Clock):
    """For loops that sleep until another thread is done: the other thread gets a turn."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        time.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """Retries of Google's clients and of Beam's without their delays, in this process.

    google-api-core waits up to 1, 2, 4 ... seconds (``DEFAULT_RETRY``: for 120 seconds), Beam's own decorator 5, 10,
    20 ... seconds seven times. Their modules' ``time`` is replaced here by a clock that a sleep moves on: an outage
    without an end still ends in ``RetryError`` after a few dozen requests. ``slept`` adds up what would have been
    waited. Nothing of this reaches a child process: inject a single fault there, its delay is at most a second.
    """
    import apache_beam.utils.retry
    import google.api_core.retry  # noqa: F401

    clock = _Clock()
    for module in ("retry_base", "retry_unary", "retry_streaming"):
        monkeypatch.setattr(sys.modules[f"google.api_core.retry.{module}"], "time", clock)
    monkeypatch.setattr(apache_beam.utils.retry.Clock, "sleep", lambda _self, seconds: clock.sleep(seconds))
    return clock


@pytest.fixture(scope="session")
def private_key() -> str:
    """A service account's key of this session."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


@pytest.fixture
def bucket(
    monkeypatch: pytest.MonkeyPatch, impatient: _Clock, private_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bucket]:
    """An empty bucket ``gs://bucket`` that Google's client and Beam's ``FileSystems`` reach in place of the service.

    A client reads ``STORAGE_EMULATOR_HOST`` when it is made. This process does not look for credentials: without
    ``_credentials_init`` ``GcsIO`` asks a metadata server that is not there for 20 seconds, whatever ``--no_auth``
    says. Child processes find a service account whose tokens come from the stand-in too.
    """
    import apache_beam.internal.gcp.auth as auth

    from gatokit.storage import gcs

    with StorageServer("bucket") as server:
        account = Path(tmp_path_factory.mktemp("account")) / "key.json"
        account.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "client_email": "builder@p.iam.gserviceaccount.com",
                    "project_id": "p",
                    "private_key_id": "1",
                    "private_key": private_key,
                    "token_uri": f"{server.url}/token",
                }
            )
        )
        # The host must be "localhost", not 127.0.0.1.
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
        monkeypatch.setattr(auth._Credentials, "_credentials", None)
        # Clients of an earlier test know the port of its server.
        monkeypatch.setattr(gcs, "_THREADS", threading.local())
        yield Bucket(server)


@pytest.fixture
def dataflow(monkeypatch: pytest.MonkeyPatch, impatient: _Clock) -> Iterator[DataflowServer]:
    """A Dataflow service whose jobs end at once; ``dataflow.execute`` may be given something that runs them.

    Beam's waiting for a job, 5 seconds at a time, takes hundredths of a second.
    """
    import apache_beam.runners.dataflow.dataflow_runner as runner

    monkeypatch.setattr(runner, "time", _Ticking())
    with DataflowServer() as server:
        yield server
