"""Evaluation and controls on a real, untrained checkpoint: the numbers mean nothing."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import EvaluateConfig, LoopConfig, ModelConfig, TrainConfig
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, TRUTH_SCHEMA, DataRefs
from dynamics.evaluation.controls import run_controls
from dynamics.evaluation.heldout import evaluate_heldout, results_schema
from dynamics.evaluation.metrics import summarise
from dynamics.inference.load import load_pair, model_ref
from dynamics.pretraining.base import BaseRecipe
from dynamics.report.grid import draw_grid, grid_rows, shown_scenes
from dynamics.report.pictures import Frames
from dynamics.storage.tables import write_table
from tests.bases import write_base
from tests.fakes import WORLD, filmed

HELDOUT, HELDOUT_TRUTH = filmed(12)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> LoopConfig:
    base = tmp_path_factory.mktemp("base")
    write_base(base, WORLD, BaseRecipe(width=32, layers=1, heads=2, feed_forward=64))
    return LoopConfig(
        world=WORLD,
        model=ModelConfig(base=base),
        train=TrainConfig(first_steps=2, round_steps=2, batch_size=8, warmup_steps=0),
        evaluate=EvaluateConfig(best_of=(1, 2), num_best_of_items=6, batch_size=5),
    )


@pytest.fixture(scope="module")
def controlled(cfg: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the controls of its round 1, trained in processes of their own."""
    run_dir = tmp_path_factory.mktemp("run")
    pairs, truth = filmed(40, start=1000)
    data = DataRefs(
        labelled=write_table(run_dir / "labelled.parquet", pairs.slice(0, 16), TRANSITION_SCHEMA),
        pool=write_table(
            run_dir / "pool.parquet", pairs.slice(16).select(PAIR_SCHEMA.names), PAIR_SCHEMA
        ),
        heldout=write_table(run_dir / "heldout.parquet", HELDOUT, TRANSITION_SCHEMA),
        truth=write_table(
            run_dir / "truth.parquet", pa.concat_tables([truth, HELDOUT_TRUTH]), TRUTH_SCHEMA
        ),
    )
    schema = results_schema(cfg.evaluate.best_of)
    flat = {field.name: [None] * HELDOUT.num_rows for field in schema}
    for name in ("pair_id", "action"):
        flat[name] = HELDOUT[name].to_pylist()
    for name in ("action_kind", "idm_action"):
        flat[name] = [""] * HELDOUT.num_rows
    flat |= {
        "greedy_codes": HELDOUT["source_codes"].to_pylist(),
        "idm_mean_logprob": [-0.5] * HELDOUT.num_rows,
        "idm_exact": [False] * HELDOUT.num_rows,
        "idm_correct": [False] * HELDOUT.num_rows,
        "fdp_greedy_success": [False] * HELDOUT.num_rows,
    }
    items = pa.table(flat, schema=schema)
    write_table(run_dir / "rounds/round-01/results.parquet", items, schema)
    report = run_controls(cfg, run_dir, data, 1)
    assert report.num_pool == 24
    assert report.arms["round"]["eval/fdp_success"].value == 0.0
    return run_dir


def _models(cfg: LoopConfig, run_dir: Path):
    arm = run_dir / "controls/round-01/true_labels"
    return load_pair(model_ref(cfg.base_path(), arm / "idm", arm / "fdp"), cfg.model)


@pytest.mark.slow
def test_controls_leave_adapters_evaluations_and_a_report(cfg: LoopConfig, controlled: Path):
    folder = controlled / "controls/round-01"
    assert (folder / "report.json").is_file()
    for arm in ("labelled_only", "true_labels"):
        assert (folder / arm / "results.parquet").is_file()
        for task in ("idm", "fdp"):
            assert (folder / arm / task).is_dir()


def test_real_models_fill_every_column(cfg: LoopConfig, controlled: Path):
    idm, fdp = _models(cfg, controlled)
    items = evaluate_heldout(HELDOUT, HELDOUT_TRUTH, idm, fdp, cfg, 1, with_best_of=6)
    assert items.schema == results_schema((1, 2))
    assert {"eval/fdp_success", "eval/best_of_2", "eval/tokenizer_ceiling"} <= set(summarise(items))
    shown = shown_scenes(items, HELDOUT)
    picture = draw_grid(grid_rows(shown, Frames(fdp.images, [shown])))
    assert picture.startswith(b"\x89PNG")


def test_parts_of_a_table_give_the_rows_of_the_whole(cfg: LoopConfig, controlled: Path):
    idm, fdp = _models(cfg, controlled)
    whole = evaluate_heldout(HELDOUT, HELDOUT_TRUTH, idm, fdp, cfg, 1, with_best_of=12)
    parts = [
        evaluate_heldout(HELDOUT.slice(start, 6), HELDOUT_TRUTH, idm, fdp, cfg, 1, with_best_of=6)
        for start in (0, 6)
    ]
    assert pa.concat_tables(parts).equals(whole)


def test_sampled_frames_are_codes_of_the_model(cfg: LoopConfig, controlled: Path):
    idm, fdp = _models(cfg, controlled)
    items = evaluate_heldout(HELDOUT, HELDOUT_TRUTH, idm, fdp, cfg, 1, with_best_of=12)
    codes = np.array(items["best_codes"].to_pylist())
    assert codes.shape == (12, 9)
    assert codes.max() < fdp.images.num_codes
