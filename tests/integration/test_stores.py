"""Runs whose places lie in a store, by the command; stores that cannot hold one."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.places import StorePath
from dynamics.pipeline.verify import verify
from dynamics.storage.run_folder import RunFolder
from tests.runs import LocalRun, results
from tests.serving import free_port
from tests.stores import BUCKET, s3_client, s3_server, store_environment

SECRET = store_environment("")["AWS_SECRET_ACCESS_KEY"]


def bootstrap(
    environment: Mapping[str, str], *arguments: str, on_ray: bool = False
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "ray_jobs/bootstrap.py", "--config", "tests/test-3x3.yaml"]
    return subprocess.run(
        [*command, *([] if on_ray else ["--no-ray"]), *arguments],
        env={**os.environ, **environment},
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
    )


def assert_refused(done: "subprocess.CompletedProcess[str]", *said: str) -> None:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(text in line for text in said), line
    assert SECRET not in done.stderr + done.stdout


class _Forgetful(BaseHTTPRequestHandler):
    """A store that ignores If-None-Match, as some still do: every put succeeds."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"<DeleteResult><Deleted><Key>x</Key></Deleted></DeleteResult>")

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def forgetful_store() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Forgetful) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_store_that_overwrites_what_exists_is_refused() -> None:
    with forgetful_store() as url:
        done = bootstrap(store_environment(url), "--run-dir", f"s3://{BUCKET}/run")
    assert_refused(done, f"the store of s3://{BUCKET}/run replaces", "If-None-Match", "or a path")


@pytest.mark.parametrize(
    ("key", "place", "said"),
    [
        ("run_dir", "s3://no-such-bucket/run", "s3://no-such-bucket does not exist; create it"),
        ("pool.path", "s3://no-such-bucket/clips", "s3://no-such-bucket does not exist; create it"),
        ("model.base", "s3://no-such-bucket/base", "s3://no-such-bucket does not exist; create it"),
        ("model.base", f"s3://{BUCKET}/nothing", "nothing does not exist; check model.base"),
        ("run_dir", f"s3://me:{SECRET}@{BUCKET}", "credentials in the environment, never in the"),
        ("run_dir", "ftp://lab/run", "ftp://lab/run is no place that can be used; give a path, or"),
    ],
)
def test_a_place_that_cannot_be_is_refused(s3_url: str, key: str, place: str, said: str) -> None:
    run_dir = [] if key == "run_dir" else ["--run-dir", f"s3://{BUCKET}/refused"]
    assert_refused(bootstrap(store_environment(s3_url), *run_dir, f"{key}={place}"), said)
    assert not s3_client(s3_url).list_objects_v2(Bucket=BUCKET, Prefix="refused").get("Contents")


def test_wrong_credentials_are_refused(tmp_path: Path) -> None:
    strict = {"INITIAL_NO_AUTH_ACTION_COUNT": "1"}  # moto checks every signature after one request
    with s3_server(strict) as url:
        done = bootstrap(store_environment(url), "--run-dir", f"s3://{BUCKET}/run")
    assert_refused(done, f"s3://{BUCKET}/run", "refuses these credentials", "AWS_ACCESS_KEY_ID")


def test_a_store_that_does_not_answer_is_named_within_seconds() -> None:
    start = time.monotonic()
    nobody = store_environment("http://127.0.0.1:9")
    done = bootstrap(nobody, "--run-dir", f"s3://{BUCKET}/run")
    assert_refused(done, f"s3://{BUCKET}/run", "check credentials and endpoint")
    assert time.monotonic() - start < 30  # the start of the command included


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_on_ray_in_a_store_is_that_of_one_process_and_keeps_no_credential(
    s3: StorePath, s3_url: str, small: LoopConfig, local_run: LocalRun, tmp_path: Path
) -> None:
    environment = {**store_environment(s3_url), "DYNAMICS_CACHE": str(tmp_path / "cache")}
    overrides = [
        f"model.base={small.base_path()}",
        f"train.first_steps={small.train.first_steps}",
        f"train.round_steps={small.train.round_steps}",
        f"serve.port={free_port()}",
    ]
    done = bootstrap(environment, *overrides, "--run-dir", str(s3), on_ray=True)
    assert done.returncode == 0, done.stderr
    assert results(s3) == results(local_run.folder)
    assert verify(RunFolder(s3))[1] == []
    assert (s3 / "example-rollout.json").is_file()  # its generator was served and has answered
    (database,) = (tmp_path / "cache").rglob("mlflow.db")
    assert f"sqlite:///{database}" in done.stdout
    written = [path.read_bytes() for path, _ in s3.files()]
    written += [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in content for content in written)
    assert SECRET not in done.stdout + done.stderr
