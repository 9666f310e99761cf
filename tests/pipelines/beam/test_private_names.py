"""The private names of Beam that gatokit uses are there: setup.py allows the releases of Beam in which they are."""

from apache_beam.io.gcp.gcsfilesystem import GCSFileSystem
from apache_beam.io.gcp.gcsio import GcsIO
from apache_beam.options import pipeline_options
from apache_beam.runners.portability.fn_api_runner import worker_handlers


def test_local_workers_can_answer_for_a_dead_process() -> None:
    connection = worker_handlers.ControlConnection()
    assert connection._futures_by_id == {}
    assert callable(connection.push)
    for name in ("start_worker", "stop_worker", "close"):
        assert callable(getattr(worker_handlers.GrpcWorkerHandler, name))
    assert callable(worker_handlers.WorkerHandler.register_environment)


def test_unknown_options_can_be_found() -> None:
    assert issubclass(pipeline_options._BeamArgumentParser, pipeline_options.argparse.ArgumentParser)
    assert all(hasattr(options, "_add_argparse_args") for options in pipeline_options.StandardOptions.__mro__[:1])


def test_objects_are_read_by_beams_client() -> None:
    assert callable(GCSFileSystem._gcsIO)
    assert "_storage_client_retry" in GcsIO.__init__.__code__.co_names
