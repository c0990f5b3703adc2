import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import ClassVar

import pytest

from dynamics.core.errors import UserError
from dynamics.core.places import StorePath, as_place
from tests.faults import faulty_proxy
from tests.stores import BUCKET, at_store, s3_client


def test_a_place_of_a_store_is_a_value_with_the_parts_of_a_path() -> None:
    root = StorePath("s3://lab/runs//x/")
    table = root / "data" / "pool.parquet"
    assert str(table) == table.as_posix() == "s3://lab/runs/x/data/pool.parquet"
    assert (table.name, table.stem, table.suffix) == ("pool.parquet", "pool", ".parquet")
    assert table.parent.parent == root
    assert table.with_name("b") == root / "data/b"
    assert table.relative_to(root) == PurePosixPath("data/pool.parquet")
    assert table.is_relative_to(StorePath("s3://lab"))
    assert not table.is_relative_to(StorePath("s3://lab/runs/xx"))
    assert not table.is_relative_to(Path("/lab"))
    assert pickle.loads(pickle.dumps(table)) == table
    assert {table, root / "data/pool.parquet"} == {table}
    assert sorted([root / "b", root / "a"])[0].name == "a"
    assert StorePath("gs://lab").name == "lab"
    assert StorePath("gs://lab").parent == StorePath("gs://lab")


def test_nothing_that_opens_files_takes_a_place_of_a_store() -> None:
    with pytest.raises(TypeError):
        os.fspath(StorePath("s3://lab/x"))


def test_a_name_cannot_lead_out_of_a_place() -> None:
    for name in ("../x", "/etc/passwd"):
        with pytest.raises(UserError, match="leads out"):
            StorePath("s3://lab/a") / name


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("s3://key:hush@lab/x", "credentials in the environment"),
        ("az://lab/x?sig=hush", "credentials in the environment"),
        ("file:///hush", "s3://bucket/folder"),
        ("hdfs://hush/x", "s3://bucket/folder"),
        ("s3:/hush/x", "s3://bucket/folder"),
        ("s3://", "s3://bucket/folder"),
        ("s3://lab/../x", "must not have"),
    ],
)
def test_other_addresses_are_refused_and_their_secrets_not_repeated(url: str, found: str) -> None:
    with pytest.raises(UserError, match=found) as refusal:
        as_place(url)
    assert "hush" not in str(refusal.value) or "@" not in url


def test_objects_and_folders_read_like_files_and_folders(s3: StorePath, s3_url: str) -> None:
    names = ["b.txt", "sub/c.txt", "strange #1 %20~ü{x}?.mp4"]
    for name in names:
        (s3 / name).write(name.encode())
    keys = s3_client(s3_url).list_objects_v2(Bucket=BUCKET, Prefix=f"{s3.name}/")["Contents"]
    assert {key["Key"].removeprefix(f"{s3.name}/") for key in keys} == set(names)
    assert {str(place.relative_to(s3)) for place, _ in s3.files()} == set(names)
    assert [(s3 / name).read_text() for name in names] == names
    assert [place.name for place in s3.iterdir()] == ["b.txt", names[2], "sub"]
    assert [place.name for place in s3.glob("*.txt")] == ["b.txt"]
    assert s3.is_dir()
    assert not s3.is_file()
    assert (s3 / "sub").exists()
    assert not (s3 / "su").exists()
    assert (s3 / "b.txt").is_file()
    (s3 / "b.txt").unlink()
    (s3 / "b.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"b\.txt"):
        (s3 / "b.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.txt"):
        (s3 / "b.txt").read_bytes()


def test_more_objects_than_a_page_holds_are_all_listed(s3: StorePath) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: (s3 / f"{n:04}").write(b""), range(1203)))
    assert [place.name for place, _ in s3.files()] == [f"{n:04}" for n in range(1203)]


def test_an_object_is_read_by_ranges(s3: StorePath) -> None:
    payload = bytes(range(256)) * 10_000
    (s3 / "large").write(payload)
    with (s3 / "large").open() as stream:
        stream.seek(1_000_001)
        assert stream.read(3) == payload[1_000_001:1_000_004]
        stream.seek(-2, 2)
        assert stream.read() == payload[-2:]
        stream.seek(0)
        assert stream.read() == payload


def test_of_many_creators_exactly_one_wins_also_with_equal_bytes(s3: StorePath) -> None:
    for race in range(50):
        with ThreadPoolExecutor(8) as threads:
            place = s3 / f"{race:02}"
            won = list(threads.map(lambda n, place=place: place.create(bytes([n // 2])), range(8)))
        assert sum(won) == 1
        assert place.read_bytes() == bytes([won.index(True) // 2])


def test_a_store_that_fails_a_quarter_of_the_requests_loses_and_doubles_nothing(
    s3: StorePath, s3_url: str
) -> None:
    with faulty_proxy(s3_url) as proxy, at_store(proxy.url), ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda n: (s3 / f"{n // 2:02}").create(bytes([n])), range(100)))
        found = {place.name: place.read_bytes() for place, _ in s3.files()}
    assert [first + second for first, second in zip(won[::2], won[1::2], strict=True)] == [1] * 50
    winners = [2 * n + won[2 * n + 1] for n in range(50)]
    assert found == {f"{n:02}": bytes([winners[n]]) for n in range(50)}
    assert proxy.counts["reset"] > 2


def test_a_bucket_that_is_not_there_is_named(s3: StorePath) -> None:
    place = StorePath("s3://no-such-bucket/x")
    for ask in (
        place.read_bytes,
        place.is_dir,
        lambda: place.create(b""),
        lambda: place.write(b""),
    ):
        with pytest.raises(UserError, match="s3://no-such-bucket does not exist; create it"):
            ask()


class _Recorder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, Message]]] = []

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers))
        self.send_response(201)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 22:00:00 GMT")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_azure_and_google_are_asked_to_create_only_what_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Recorder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        account = {"gcs_base_url": url, "disable_oauth": True, "client_email": ""}
        account |= {"private_key": "", "private_key_id": ""}
        (tmp_path / "account.json").write_text(json.dumps(account))
        for name, value in {
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
            "AZURE_STORAGE_ENDPOINT": url,
            "AZURE_ALLOW_HTTP": "true",
            "GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "account.json"),
            "GOOGLE_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(name, value)
        assert StorePath("az://lab/a/b").create(b"1")
        assert StorePath("gs://lab/a/b").create(b"1")
        server.shutdown()
    (azure, of_azure), (google, of_google) = _Recorder.seen
    assert (azure, of_azure["If-None-Match"]) == ("/lab/a/b", "*")
    assert (google, of_google["x-goog-if-generation-match"]) == ("/lab/a%2Fb", "0")
    assert of_azure["x-ms-meta-writer"]
    assert of_google["x-goog-meta-writer"]


def test_another_version_than_the_one_that_was_listed_is_not_copied(
    s3: StorePath, tmp_path: Path
) -> None:
    place = s3 / "weights"
    place.write(b"old")
    version = place.meta()["e_tag"]
    place.fetch(tmp_path / "copy", version)
    place.write(b"new")
    with pytest.raises(UserError, match="weights cannot be used"):
        place.fetch(tmp_path / "copy", version)
    place.fetch(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"
