"""Dataflow's REST API on loopback, as far as Beam's ``DataflowRunner`` uses it: create a job, look at it, read its
messages and metrics, cancel it.

A job may be executed for real: ``execute`` is called in a thread with the job as it was submitted, and the job is
running until it returns (done) or raises (failed, with the exception as an error message).
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.google.server import LoopbackServer, Request, Response

_JOB = re.compile(
    r"/v1b3/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/jobs(?:/(?P<id>[^/]+)(?P<rest>/.*)?)?"
)
_TIME = "2020-01-01T00:00:00Z"
_PATIENCE_SECONDS = 20
"""An answer to "how is the job" waits this long for its end, so that nobody polls in vain."""


@dataclass
class Job:
    """A submitted job: the request's JSON and what became of it."""

    id: str
    project: str
    region: str
    request: dict[str, Any]
    state: str = "JOB_STATE_PENDING"
    messages: list[tuple[str, str]] = field(default_factory=list)
    asked: int = 0
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def environment(self) -> dict[str, Any]:
        """How it is to be run."""
        return self.request["environment"]

    @property
    def options(self) -> dict[str, Any]:
        """Beam's options as the workers get them."""
        return self.environment["sdkPipelineOptions"]["options"]

    @property
    def pool(self) -> dict[str, Any]:
        """Its only worker pool."""
        [pool] = self.environment["workerPools"]
        return pool

    @property
    def graph(self) -> str:
        """``gs://`` name of the staged pipeline."""
        return self.options["pipelineUrl"]

    def packages(self) -> dict[str, str]:
        """What the workers are to install: ``gs://`` names by file name."""
        return {
            package["name"]: package["location"].replace("storage.googleapis.com", "gs:/")
            for package in self.pool["packages"]
        }


class DataflowServer(LoopbackServer):
    """``jobs`` in the order of their submission."""

    def __init__(self, execute: Callable[[Job], None] | None = None) -> None:
        super().__init__()
        self.jobs: list[Job] = []
        self.execute = execute
        self._threads: list[threading.Thread] = []

    def __exit__(self, *error: object) -> None:
        for thread in self._threads:
            thread.join()
        super().__exit__(*error)

    def prepare(self, request: Request) -> None:
        match = _JOB.fullmatch(request.path)
        job = self._find(match["id"]) if match and match["id"] and not match["rest"] else None
        if job is not None and request.method == "GET" and job.asked > 1:
            job.ended.wait(_PATIENCE_SECONDS)

    def answer(self, request: Request) -> Response:
        match = _JOB.fullmatch(request.path)
        if match is None:
            return Response.error(404, f"no such path: {request.path}")
        if match["id"] is None:
            if request.method != "POST":
                return Response.error(501, "jobs are not listed here")
            return self._create(request, match["project"], match["region"])
        job = self._find(match["id"])
        if job is None or (job.project, job.region) != (match["project"], match["region"]):
            return Response.error(404, f"no such job: {match['id']}")
        if match["rest"] == "/messages":
            return self._messages(job, request)
        if match["rest"] == "/metrics":
            return Response.of({"metricTime": _TIME, "metrics": []})
        if match["rest"] is not None:
            return Response.error(501, f"{request.path} is not spoken here")
        if request.method == "PUT":
            job.state = request.json()["requestedState"]
            job.ended.set()
        job.asked += 1
        # However short it was, a client sees it run, or it would not look for its messages.
        shown = "JOB_STATE_RUNNING" if job.asked < 3 else job.state
        return Response.of(self._resource(job, shown))

    def _find(self, id_: str) -> Job | None:
        return next((job for job in self.jobs if job.id == id_), None)

    def _create(self, request: Request, project: str, region: str) -> Response:
        body = request.json()
        job = Job(f"job-{len(self.jobs)}", project, region, body, "JOB_STATE_RUNNING")
        running = [other for other in self.jobs if not other.ended.is_set() and other.request["name"] == body["name"]]
        if running:
            return Response.error(409, f"job {body['name']} is running")
        self.jobs.append(job)
        thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return Response.of(self._resource(job, "JOB_STATE_RUNNING"))

    def _run(self, job: Job) -> None:
        state = "JOB_STATE_DONE"
        try:
            if self.execute is not None:
                self.execute(job)
        except BaseException as error:
            job.messages.append(("JOB_MESSAGE_ERROR", f"{type(error).__name__}: {error}"))
            state = "JOB_STATE_FAILED"
        if not job.ended.is_set():
            job.state = state
        job.ended.set()

    def _resource(self, job: Job, state: str) -> dict[str, Any]:
        kept = {key: job.request[key] for key in ("name", "type", "clientRequestId") if key in job.request}
        where = {"id": job.id, "projectId": job.project, "location": job.region}
        return {**kept, **where, "currentState": state, "currentStateTime": _TIME, "createTime": _TIME}

    def _messages(self, job: Job, request: Request) -> Response:
        messages = [
            {"id": str(number), "time": _TIME, "messageText": text, "messageImportance": importance}
            for number, (importance, text) in enumerate(job.messages)
        ]
        begin = int(request.query.get("pageToken") or 0)
        answer: dict[str, Any] = {"jobMessages": messages[begin : begin + 1]}
        if begin + 1 < len(messages):
            answer["nextPageToken"] = str(begin + 1)
        return Response.of(answer)
