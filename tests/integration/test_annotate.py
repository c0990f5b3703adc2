"""`dynamics annotate` killed again and again while answers come in."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import httpx
import pyarrow.parquet as pq
import pytest

from dynamics.data.video.encode import write_mp4
from tests.serving import free_port
from tests.unit.annotate.conftest import jumps

KILLS = 20


@pytest.mark.slow
def test_no_answer_is_lost_under_twenty_kills(tmp_path: Path) -> None:
    for number in range(30):
        write_mp4(tmp_path / "clips" / f"{number}.mp4", jumps(number), 10)
    out, port, rng = tmp_path / "labels.parquet", free_port(), random.Random(0)
    acknowledged: list[str] = []
    for kill in range(KILLS + 1):
        process = started(tmp_path / "clips", out, port)
        try:
            state = answering(port)
            assert state["turn"] >= len(acknowledged)
            killed = Timer(rng.uniform(0, 0.4), process.kill) if kill < KILLS else None
            acknowledged = answered(port, state, out, acknowledged, killed)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    kept = journal(out)
    assert kept[: len(acknowledged)] == acknowledged
    assert len(set(kept)) == len(kept) > 2 * KILLS
    assert pq.read_table(out)["pair_id"].to_pylist() == kept


def started(clips: Path, out: Path, port: int) -> subprocess.Popen[bytes]:
    command = ["annotate", str(clips), "--out", str(out), "--name", "ana", "--spacing", "5"]
    options = ["--port", str(port), "--no-open", "--repeat-every", "0"]
    return subprocess.Popen([sys.executable, "-m", "dynamics.cli.main", *command, *options])


def answering(port: int) -> dict[str, object]:
    """The state, once a pair is asked about."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state: dict[str, object] = httpx.get(f"http://127.0.0.1:{port}/v1/state").json()
        except httpx.TransportError:
            time.sleep(0.05)
            continue
        if state["task"]:
            return state
    raise AssertionError("no pair is asked about")


def answered(port, state, out, before, killed: Timer | None) -> list[str]:
    """The pairs whose answers were acknowledged, until the process is killed, or ten of them."""
    known = journal(out)
    assert known[: len(before)] == before
    for number in range(1000 if killed else 10):
        pair = state["task"]["pair"]
        body = {"turn": state["turn"], "pair": pair, "kind": "action", "action": f"push {pair}"}
        try:
            reply = httpx.post(f"http://127.0.0.1:{port}/v1/answers", json=body, timeout=30)
        except httpx.TransportError:
            break
        assert reply.status_code == 200, reply.text
        state = reply.json()
        known.append(pair)
        if killed and not number:
            killed.start()
        if not state["task"]:
            break
    return known


def journal(out: Path) -> list[str]:
    """The pairs of the whole lines on the disk."""
    path = out.with_suffix(".answers") / "ana.jsonl"
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [json.loads(line)["shot"]["pair_id"] for line in lines]
