"""The whole loop in one process on real videos and a real, untrained checkpoint."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dynamics.core.config import KeyframeConfig, LabelledConfig, LoopConfig, PoolConfig, PoolPart
from dynamics.core.config_file import with_overrides
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.core.records import (
    PAIR_SCHEMA,
    TRANSITION_SCHEMA,
    RoundReport,
)
from dynamics.data.video.encode import write_mp4
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.pipeline import decoding
from dynamics.pipeline.decoding import driver_images
from dynamics.pipeline.executor import LocalExecutor, StreamStage
from dynamics.serving.examples import example_scenes
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.shards import Shard
from dynamics.storage.streams import Done, Stream, run_stream
from dynamics.storage.tables import read_table
from tests.made_data import write_aurora, write_clip, write_kinetics700, write_ucf101
from tests.runs import LocalRun, Stop, StopAt, results, run_local
from tests.unit.storage.rows import make_labels


class CountingTracker:
    def __init__(self, page: Path) -> None:
        self.page = page
        self.begun: list[int] = []
        self.rounds: list[int] = []
        self.pages: list[bool] = []

    def begin_round(self, round_id: int) -> None:
        self.begun.append(round_id)

    def log_round(self, report: RoundReport) -> None:
        self.rounds.append(report.round_id)

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        self.pages.append(self.page.exists())


def test_a_run_leaves_what_the_run_folder_promises(small: LoopConfig, local_run: LocalRun) -> None:
    folder = local_run.folder
    seed = read_table(folder / "data" / "labelled.parts", TRANSITION_SCHEMA)
    assert seed.num_rows == small.labelled.num_pairs
    labels = Ledger(folder / "ledger").labels(1)
    assert labels.num_rows == small.pool.num_pairs
    report = RunFolder(folder).report(1)
    assert report is not None
    assert report.num_accepted > 0
    assert report.num_labelled == sum(report.reasons.values()) == small.pool.num_pairs
    assert {"eval/fdp_success", "eval/idm_accuracy", "eval/best_of_2"} <= set(report.metrics)
    assert report.metrics["eval/fdp_success"].num_items == small.labelled.num_heldout
    training_set = read_table(RunFolder(folder).training_set(1), TRANSITION_SCHEMA)
    assert training_set.num_rows == seed.num_rows + report.num_accepted
    assert {"train", "evaluate", "label"} <= set(RunFolder(folder).timings(1))
    assert (folder / "rounds" / "round-01" / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert "nan" not in (folder / "rounds" / "round-01" / "report.json").read_text().lower()


def test_reports_hold_no_path_of_this_machine(local_run: LocalRun) -> None:
    models = json.loads((local_run.folder / "rounds" / "round-01" / "report.json").read_text())[
        "models"
    ]
    assert models["idm"] == "rounds/round-01/idm"
    assert models["fdp"] == "rounds/round-01/fdp"
    assert "/" not in models["base"]


def test_a_finished_run_is_not_done_again(small: LoopConfig, local_run: LocalRun) -> None:
    folder = local_run.folder
    before = results(folder)
    progress, tracker = StopAt(), CountingTracker(folder / "report.html")
    no_serving = small.model_copy(
        update={"serve": small.serve.model_copy(update={"enabled": False})}
    )
    reports = run_local(no_serving, folder, tracker, progress)
    assert [report.round_id for report in reports] == [0, 1]
    assert progress.seen == []
    assert tracker.begun == []
    assert tracker.pages == [True]
    assert results(folder) == before


@pytest.mark.parametrize("share", [0.15, pytest.param(0.26, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_again_and_again_resumes_to_equal_bytes(
    small: LoopConfig, local_run: LocalRun, tmp_path: Path, share: float
) -> None:
    stopped = 0
    while stopped < 3:
        progress = StopAt(int(share * local_run.num_progress_calls))
        with pytest.raises(Stop):
            run_local(small, tmp_path, progress=progress)
        assert results(tmp_path) != results(local_run.folder)
        stopped += 1
    run_local(small, tmp_path)
    assert results(tmp_path) == results(local_run.folder)


def stop_in_evaluation(done: int, total: int, what: str, *_: object) -> None:
    if done and what == "evaluate, round 0":
        raise Stop


def test_a_run_that_moved_goes_on_from_its_files_with_other_sizes_and_base(
    small: LoopConfig, local_run: LocalRun, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run_local(small, tmp_path / "here", progress=stop_in_evaluation)
    base = shutil.copytree(small.base_path(), tmp_path / small.model.base.name)
    moved = RunFolder((tmp_path / "here").rename(tmp_path / "there"))
    sizes = [f"model.base={base}", "evaluate.batch_size=8", "label={batch_size: 8, shard_rows: 8}"]
    run_local(with_overrides(small, sizes), moved.root)
    assert moved.digest == RunFolder(local_run.folder).digest
    assert Ledger(moved.ledger).manifest(1).parents["config"] == moved.digest
    whole, found = results(local_run.folder), results(moved.root)
    assert found.keys() == whole.keys()
    name = "rounds/round-01/training_set.parts/manifest.json"
    assert found[name] == whole[name]
    # Batches of another size round the last bit of a likelihood differently.
    columns = [
        pq.read_table(root / "rounds" / "round-00" / "results.parquet", columns=["pair_id"])
        for root in (local_run.folder, moved.root)
    ]
    assert columns[0] == columns[1]


class BlindExecutor(LocalExecutor):
    """Every other file that its workers wrote "lies on another node", in ``elsewhere``."""

    def _hide(self, written: Path) -> None:
        elsewhere = self.folder.root / "elsewhere"
        elsewhere.mkdir()
        for path in sorted(written.glob("*.parquet"))[::2]:
            path.rename(elsewhere / path.name)


class BlindToLabels(BlindExecutor):
    def run_stream(self, stage: StreamStage, *work: Any) -> Iterator[Done]:
        yield from super().run_stream(stage, *work)
        if stage == "label":
            self._hide(Ledger(self.folder.ledger).attempts(1))


class BlindToParts(BlindExecutor):
    def run_stream(self, stage: StreamStage, *work: Any) -> Iterator[Done]:
        yield from super().run_stream(stage, *work)
        if stage == "evaluate":
            self._hide(self.folder.result_parts(0))


@pytest.mark.parametrize("come_back", [pytest.param(True, marks=pytest.mark.slow), False])
def test_what_lies_on_another_node_is_refused_and_the_run_resumes_to_equal_bytes(
    small: LoopConfig, local_run: LocalRun, tmp_path: Path, come_back: bool
) -> None:
    run = RunFolder(tmp_path)
    attempts, parts = Ledger(run.ledger).attempts(1), run.result_parts(0)
    unmeasured = (
        f"6 of 12 held-out pairs have no evaluation in {parts / '00000000-00000006.parquet'}"
    )
    unlabelled = f"32 of 48 pairs of the pool have no label in {attempts}"
    for blind, written, message in (
        (BlindToParts, parts, unmeasured),
        (BlindToLabels, attempts, unlabelled),
    ):
        with pytest.raises(UserError, match=re.escape(f"{message}; do all nodes see {tmp_path}")):
            run_local(small, tmp_path, executor=blind(small, run))
        hidden = (tmp_path / "elsewhere").rename(tmp_path / f"elsewhere-{written.name}")
        if come_back:
            for path in hidden.iterdir():
                path.rename(written / path.name)
    assert Ledger(run.ledger).rounds() == []
    run_local(small, tmp_path)
    assert results(tmp_path) == results(local_run.folder)


def test_labels_of_pairs_outside_the_pool_are_not_committed(
    small: LoopConfig, tmp_path: Path
) -> None:
    class WithForeignLabels(LocalExecutor):
        def run_stream(self, stage: StreamStage, *work: Any) -> Iterator[Done]:
            yield from super().run_stream(stage, *work)
            first = self.folder.report(0)
            if stage != "label" or first is None:
                return
            foreign = make_labels(5, round_id=1, idm=first.models["idm_digest"])
            Ledger(self.folder.ledger).write_attempt(1, foreign, Shard(start=0, stop=5))

    with pytest.raises(UserError, match="5 labels in"):
        run_local(small, tmp_path, executor=WithForeignLabels(small, RunFolder(tmp_path)))
    assert Ledger(tmp_path / "ledger").rounds() == []
    shutil.rmtree(tmp_path / "ledger" / "attempts" / "round-01")
    assert run_local(small, tmp_path)[1].num_labelled == small.pool.num_pairs


@pytest.mark.parametrize("rounds", [1, 2])
def test_an_adapter_with_another_bit_is_refused_before_it_is_used(
    rounds: int, small: LoopConfig, local_run: LocalRun, tmp_path: Path
) -> None:
    folder = RunFolder(Path(shutil.copytree(local_run.folder, tmp_path / "run")))
    if rounds == 1:  # trained, not measured yet
        folder.report_path(1).unlink()
        folder.results(1).unlink()
    weights = folder.adapter(1, "idm") / "adapter_model.safetensors"
    payload = bytearray(weights.read_bytes())
    payload[-1] ^= 64
    weights.write_bytes(payload)
    with pytest.raises(UserError, match="round-01/idm is not what its report names"):
        run_local(with_overrides(small, [f"rounds={rounds}"]), folder.root)


def test_more_rounds_continue_from_the_last(small: LoopConfig, tmp_path: Path) -> None:
    one_round = run_local(small, tmp_path)
    more = small.model_copy(update={"rounds": 2})
    assert run_local(more, tmp_path)[:2] == one_round
    assert (tmp_path / "rounds" / "round-02" / "report.json").exists()


def test_a_folder_of_videos_goes_through_every_stage(small: LoopConfig, tmp_path: Path) -> None:

    clips = tmp_path / "clips" / "noise"
    clips.mkdir(parents=True)
    for shade in (120, 250):
        frames = np.full((48, 64, 64, 3), 40, np.uint8)
        for state in range(6):  # a square that jumps every 8 frames
            left = 10 * state
            frames[8 * state : 8 * state + 8, 24:40, left : left + 14] = shade
        write_mp4(clips / f"{shade}.mp4", frames, fps=8)
    (clips / "broken.mp4").write_text("not a video")
    keyframes = KeyframeConfig(top_k=4, spacing_frames=4)
    pool = PoolConfig(path=tmp_path / "clips", num_pairs=100, keyframes=keyframes)
    cfg = small.model_copy(update={"pool": pool})
    run_dir = tmp_path / "run"
    reports = run_local(cfg, run_dir)
    assert reports[1].num_labelled == 6
    assert "label/accuracy" not in reports[1].metrics  # nobody knows what the clips show
    assert reports[1].metrics["eval/fdp_success"].num_items == cfg.labelled.num_heldout
    ingest = json.loads((run_dir / "data" / "ingest.json").read_text())
    assert sum(ingest["pool"]["rejects"].values()) == 1


def real(small: LoopConfig, root: Path) -> LoopConfig:
    """A labelled set that lacks a picture, and two pool folders, one of them with a copied clip."""
    write_aurora(root / "aurora")
    (root / "aurora" / "data" / "ag" / "images" / "V0.mp4_0_left.png").unlink()
    write_ucf101(root / "ucf")
    write_kinetics700(root / "k700")
    repeated = next((root / "k700").rglob("*.mp4"))
    write_clip(root / "ucf" / "Basketball" / "v_Basketball_g99_c01.avi", range(9))
    (root / "k700" / "train" / "again").mkdir()
    (root / "k700" / "train" / "again" / "x.mp4").write_bytes(repeated.read_bytes())
    labelled = LabelledConfig(dataset="aurora", path=root / "aurora", heldout_fraction=0.25)
    pool = PoolConfig(
        path=root / "ucf",
        source="ucf101",
        more=(PoolPart(path=root / "k700", source="kinetics700"),),
        keyframes=KeyframeConfig(top_k=6, spacing_frames=4),
    )
    return small.model_copy(update={"labelled": labelled, "pool": pool})


@pytest.fixture(scope="module")
def real_run(
    small: LoopConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoopConfig, Path, list[str]]:
    """A finished run on real pictures, and what its progress said, call by call."""
    root = tmp_path_factory.mktemp("real")
    cfg, progress = real(small, root), StopAt()
    run_local(cfg, root / "run", progress=progress)
    return cfg, root / "run", progress.seen


def test_real_pictures_go_through_every_stage_without_any_truth(
    real_run: tuple[LoopConfig, Path, list[str]],
) -> None:
    cfg, folder, _ = real_run
    reports = [read for n in range(2) if (read := RunFolder(folder).report(n))]
    assert [report.round_id for report in reports] == [0, 1]
    assert not (folder / "data" / "truth.parquet").exists()
    pool = read_table(folder / "data" / "pool.parts", PAIR_SCHEMA)
    assert {name.partition("/")[0] for name in pool["clip_class"].to_pylist()} == {"ucf", "k700"}
    assert "k700/passing American football (in game)" in pool["clip_class"].to_pylist()
    assert reports[1].num_labelled == pool.num_rows
    metrics = reports[1].metrics
    # Measured without an oracle, and nothing that only an oracle knows.
    assert set(metrics) == {
        "eval/idm_exact",
        "eval/majority_exact",
        "eval/idm_ece",
        "eval/code_accuracy",
        "eval/code_accuracy_copy",
        "label/accepted_fraction",
    }
    assert metrics["eval/idm_exact"].num_items == 4
    assert {guard.name for guard in reports[1].guards} == {
        "accepted_labels",
        "calibration_drift",
        "leakage",
    }
    page = (folder / "report.html").read_text()
    heldout = read_table(folder / "data" / "heldout.parts", TRANSITION_SCHEMA)
    assert heldout["action"][0].as_py() in page
    assert "rows can be used" in page
    scenes = example_scenes(load_domain(cfg), RunFolder(folder))  # the service's: camera's frames
    assert [scene.actions for scene in scenes] == [[one] for one in heldout["action"].to_pylist()]
    assert scenes[0].frame.shape[2] == 3
    ingest = json.loads((folder / "data" / "ingest.json").read_text())
    assert ingest["labelled"]["num_pairs"] == 11
    assert ingest["labelled"]["rejects"] == {"missing_image": 1, "missing_manifest": 2}
    assert ingest["pool/k700"]["rejects"] == {"clip/duplicate_clip": 1}


def test_a_run_stopped_while_it_reads_real_pictures_resumes_to_equal_bytes(
    real_run: tuple[LoopConfig, Path, list[str]], tmp_path: Path
) -> None:
    cfg, whole, seen = real_run
    reading = [n for n, what in enumerate(seen, 1) if what.startswith(("read", "ingest"))]
    for call in (reading[2], reading[len(reading) // 2]):
        with pytest.raises(Stop):
            run_local(cfg, tmp_path, progress=StopAt(call))
    run_local(cfg, tmp_path)
    assert results(tmp_path) == results(whole)


def test_a_driver_decodes_few_pixels_itself_and_many_by_a_stream(
    small: LoopConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def run(stream: Stream[Any], progress: Progress) -> Iterator[Done]:
        seen.append(stream.what)
        yield from reversed(list(run_stream(stream, progress)))

    plain, driver = (driver_images(small, run, elsewhere=where) for where in (False, True))
    codes_BL = np.arange(19 * plain.num_tokens).reshape(19, -1) % plain.num_codes
    assert np.array_equal(driver.decode(codes_BL), plain.decode(codes_BL))
    assert seen == []
    monkeypatch.setattr(decoding, "_PIXELS_HERE", 18 * plain.frame_px**2)
    assert np.array_equal(driver.decode(codes_BL), plain.decode(codes_BL))
    assert seen == ["decode frames"]
    assert isinstance(driver, ImageTokenizer)
