"""The paper's recipes, at the size of a test: their own config files, real folders, the command."""

import subprocess
import sys
from pathlib import Path

import pytest

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.config_file import load
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA
from dynamics.pipeline.stages import Stages
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder, read_json
from dynamics.storage.tables import read_table
from tests.bench import write_bench
from tests.made_data import write_aurora, write_kinetics700, write_moments, write_ucf101

CONFIG = REPOSITORY_ROOT / "configs" / "chameleon7b.yaml"
SIZES = (
    # Less of the same: nothing is switched off, and no stage is taken from another config.
    "model.device=cpu",
    "pool.keyframes.spacing_frames=4",
    "label.batch_size=8",
    "label.num_actors=1",
    "label.num_gpus_per_actor=0",
    "label.max_action_tokens=8",
    "train.num_gpus_per_worker=0",
    "train.num_workers=1",
    "train.idm.first_steps=4",
    "train.idm.round_steps=4",
    "train.idm.warmup_steps=1",
    "train.idm.batch_size=6",
    "train.fdp.first_steps=4",
    "train.fdp.round_steps=4",
    "train.fdp.warmup_steps=1",
    "train.fdp.batch_size=6",
    "evaluate.num_actors=1",
    "serve.num_gpus_per_replica=0",
    "serve.enabled=false",
    "cluster.num_cpus=8",
)


def overrides(small: LoopConfig, root: Path, bench: Path) -> list[str]:
    """What puts the recipe onto folders in the layouts of the real ones, which it makes."""
    write_aurora(root / "aurora", tasks=("magicbrush", "ag", "kubric"))
    write_moments(root / "moments")
    write_kinetics700(root / "kinetics700")
    write_ucf101(root / "ucf101")
    more = ", ".join(
        f"{{path: {root / name}, source: {name}, num_pairs: 3}}"
        for name in ("kinetics700", "ucf101")
    )
    return [
        f"model.base={small.model.base}",
        f"labelled.path={root / 'aurora'}",
        f"labelled.heldout_path={bench / 'test.json'}",
        "labelled.max_pairs={kubric: 5}",
        f"pool.path={root / 'moments'}",
        f"pool.more=[{more}]",
        *SIZES,
    ]


@pytest.fixture(scope="module")
def run(small: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of `configs/chameleon7b.yaml`."""
    root = tmp_path_factory.mktemp("recipe")
    bench = write_bench(root / "bench", copies=2)
    command = [
        sys.executable,
        str(REPOSITORY_ROOT / "ray_jobs" / "bootstrap.py"),
        "--config",
        str(CONFIG),
        "--run-dir",
        str(root / "run"),
        # The model is untrained, and labels nothing.
        "--anyway",
        "--accept-guard",
        "accepted_labels",
        *overrides(small, root, bench),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(root / "run")


@pytest.mark.cluster
def test_the_recipe_of_the_7b_model_runs_on_real_folders(run: RunFolder) -> None:
    reports = run.reports(1)
    assert [report.round_id for report in reports] == [0, 1]
    pool = read_table(run.pool, PAIR_SCHEMA)
    folders = [name.partition("/")[0] for name in pool["clip_class"].to_pylist()]
    assert folders.count("moments") > 4
    assert [folders.count(name) for name in ("kinetics700", "ucf101")] == [3, 3]
    assert "moments/adult male singing" in pool["clip_class"].to_pylist()
    assert reports[1].num_labelled == pool.num_rows
    assert Ledger(run.ledger).manifest(1).reasons.keys() <= {"accepted", "empty_action"}


@pytest.mark.cluster
def test_a_capped_class_gives_no_more_than_its_share(run: RunFolder) -> None:
    seed = read_table(run.labelled, TRANSITION_SCHEMA)["clip_class"].to_pylist()
    assert {name: seed.count(name) for name in set(seed)} == {
        "magicbrush": 8,
        "ag": 8,
        "kubric": 5,
    }


@pytest.mark.cluster
def test_every_held_out_pair_is_of_the_benchmark_and_measured(run: RunFolder) -> None:
    heldout = read_table(run.heldout, TRANSITION_SCHEMA)
    classes = ["ag"] * 4 + ["kubric"] * 2 + ["whatsup"] * 2
    assert sorted(heldout["clip_class"].to_pylist()) == classes
    assert run.reports(1)[1].metrics["eval/idm_exact"].num_items == heldout.num_rows


def test_the_real_benchmark_is_a_held_out_set(
    small: LoopConfig, real_bench: Path, tmp_path: Path
) -> None:
    cfg = load(CONFIG, overrides(small, tmp_path, real_bench))
    run = RunFolder(tmp_path / "run")
    with run.claimed(cfg):
        Stages(cfg, run.root).prepare()
    heldout = read_table(run.heldout, TRANSITION_SCHEMA)
    subsets = {"magicbrush", "ag", "something", "whatsup", "kubric"}
    assert set(heldout["clip_class"].to_pylist()) == subsets
    counted = read_json(run.data / "ingest.json")["heldout"]
    # The tiny model's prompts hold no more than a short sentence.
    assert counted["num_pairs"] + counted["rejects"].get("action_tokens", 0) == 50
    assert counted["num_pairs"] == heldout.num_rows > 40
