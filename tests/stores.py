"""An S3 server for tests: moto's, over HTTP, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import boto3

from dynamics.core import places
from dynamics.core.places import StorePath

BUCKET = "lab"
_SERVER = """
from threading import Lock
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
import sys
one, put = Lock(), S3Response.put_object
def put_alone(self):
    with one:  # moto looks for the object and creates it in two steps
        return put(self)
S3Response.put_object = put_alone
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def store_environment(url: str) -> dict[str, str]:
    """The variables by which a process reaches the store at ``url``."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "AKIATESTS",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def s3_server(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The URL of a store with one bucket, `BUCKET`; it keeps everything in memory.

    Its process ends with this one. ``environment`` is the server's own.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        text=True,
    )
    assert process.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        s3_client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        process.kill()
        process.wait()


def s3_client(url: str) -> "boto3.client":
    """A client of another kind than ours, to look at what a store holds."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="AKIATESTS",
        aws_secret_access_key="a-secret-of-the-tests",
    )


@contextmanager
def at_store(url: str) -> Iterator[None]:
    """This process reaches the store at ``url`` while the body runs."""
    places._store.cache_clear()
    places._answered.clear()
    with mock.patch.dict(os.environ, store_environment(url)):
        yield
    places._store.cache_clear()


def upload(folder: Path, to: StorePath) -> None:
    """Copy a folder of this machine into a store."""
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).write(path)
