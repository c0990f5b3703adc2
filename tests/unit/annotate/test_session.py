"""What an annotator is asked, and what is kept of the answers, on real clips and over HTTP."""

import io
import math

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from dynamics.annotate.server import make_app
from dynamics.data.labelled import DATASETS
from tests.unit.annotate.conftest import asked

LOCAL = "http://127.0.0.1:8001"


def client(session) -> TestClient:
    return TestClient(make_app(session), base_url=LOCAL)


def test_answers_become_a_labelled_set_and_the_next_session_goes_on(opened, tmp_path):
    out = tmp_path / "labels.parquet"
    with opened(out) as session:
        pairs = asked(session)
        for turn, said in enumerate(["Push it left", "push it LEFT.", "open   the door"]):
            session.answer(turn, next(pairs), "action", said)
        session.answer(3, next(pairs), "no_change", "")
        session.answer(4, next(pairs), "unsure", "")
        first = [answer.shot.pair_id for answer in session.answers]
        session.undo(5)
        assert next(pairs) == first[-1]
        session.answer(4, next(pairs), "skip", "")
    assert (session.num_labels, session.num_sentences) == (3, 2)
    listed = DATASETS["parquet"](out)
    assert sorted(pair.action for pair in listed.pairs) == [
        "Push it left",
        "Push it left",
        "open the door",
    ]
    assert pq.read_table(out)["round"].null_count == 3
    with opened(out) as session:
        assert len(session.answers) == 5
        seen = set(first)
        for turn in range(5, 9):
            pair = next(asked(session))
            assert pair not in seen
            seen.add(pair)
            session.answer(turn, pair, "action", "push it left")


@pytest.mark.slow
def test_pairs_come_back_to_measure_agreement(opened, tmp_path):
    out = tmp_path / "labels.parquet"
    with opened(out, "ana", repeat_every=4) as session:
        for turn in range(20):
            session.answer(turn, next(asked(session)), "action", "push it")
        own, _ = session.agreement()
        assert (own.same, own.asked) == (1, 1)
    with opened(out, "ben", repeat_every=4) as session:
        for turn in range(8):
            session.answer(turn, next(asked(session)), "action", f"push it {turn}")
        _, others = session.agreement()
        assert (others.same, others.asked) == (0, 2)
    assert session.num_labels == 19 + 6


def test_the_page_gets_film_and_frames_of_a_pair(open_app):
    _, http, pair = open_app
    about = http.get(f"/v1/pairs/{pair}").json()
    sprite = http.get(f"/v1/pairs/{pair}/film.jpg")
    assert sprite.headers["content-type"] == "image/jpeg"
    size = Image.open(io.BytesIO(sprite.content)).size
    rows = math.ceil(len(about["times_s"]) / about["columns"])
    assert size == (64 * about["columns"], 48 * rows)
    assert len(about["times_s"]) > about["ends"][1] > about["ends"][0] >= 0
    for name in ("source.png", "target.png"):
        png = http.get(f"/v1/pairs/{pair}/{name}").content
        assert Image.open(io.BytesIO(png)).size == (64, 48)
    assert http.get(f"/v1/pairs/{'0' * 32}/source.png").status_code == 404
    assert http.get(f"/v1/pairs/{pair}/../../etc").status_code == 404


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"origin": "https://elsewhere.example"}, "{}", 403),
        ({"host": "elsewhere.example"}, "{}", 403),
        ({"sec-fetch-site": "cross-site"}, "{}", 403),
        ({"content-type": "text/plain"}, "{}", 415),
        ({}, '{"turn": 0}', 422),
        ({}, '{"turn": 0, "pair": "../x", "kind": "skip"}', 422),
        ({}, '{"turn": 7, "pair": "PAIR", "kind": "skip"}', 409),
        ({}, '{"turn": 0, "pair": "0", "kind": "skip"}', 409),
        ({}, '{"turn": 0, "pair": "PAIR", "kind": "action", "action": " "}', 422),
        ({}, '{"turn": 0, "pair": "PAIR", "kind": "action", "action": "see <image>"}', 422),
        ({}, '{"turn": 0, "pair": "PAIR", "kind": "action", "action": "%s"}' % ("x" * 600), 422),
        ({}, "x" * 40_000_000, 413),
    ],
)
def test_what_is_no_answer_of_this_page_changes_nothing(open_app, headers, content, status):
    session, http, pair = open_app
    headers = {"content-type": "application/json", **headers}
    content = content.replace("PAIR", pair)
    reply = http.post("/v1/answers", content=content, headers=headers)
    assert reply.status_code == status, reply.text
    assert not session.answers


@pytest.fixture(scope="module")
def open_app(clips, tmp_path_factory):
    from dynamics.annotate.session import open_session
    from dynamics.core.config import KeyframeConfig

    out = tmp_path_factory.mktemp("out") / "labels.parquet"
    with (
        open_session(clips, "folder", out, "ana", KeyframeConfig(spacing_frames=5)) as session,
        client(session) as http,
    ):
        yield session, http, next(asked(session))


def test_a_request_that_is_repeated_changes_nothing(open_app):
    session, http, pair = open_app
    body = {"turn": 0, "pair": pair, "kind": "unsure"}
    first, second = (http.post("/v1/answers", json=body) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json()["turn"] == second.json()["turn"] == 1
    session.undo(1)
