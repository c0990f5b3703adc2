"""A finished run of the 3x3 world as the loop leaves it, from scripted models."""

import json
from functools import cache
from pathlib import Path

import pyarrow as pa

from dynamics.core.config import EvaluateConfig, FilterConfig, LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.records import (
    LABEL_SCHEMA,
    PAIR_SCHEMA,
    TRANSITION_SCHEMA,
    TRUTH_SCHEMA,
    RoundReport,
)
from dynamics.evaluation.heldout import evaluate_heldout, results_schema
from dynamics.evaluation.label_quality import correct_labels, label_accuracy
from dynamics.evaluation.metrics import summarise
from dynamics.labelling.filter import TopFractionRule, decide
from dynamics.report.labels import LabelTables
from dynamics.storage.ledger import Ledger, reason_counts
from dynamics.storage.run_folder import RunFolder, write_json
from dynamics.storage.shards import Shard
from dynamics.storage.tables import write_table
from tests.fakes import WORLD, ScriptedFDP, ScriptedIDM, filmed

CFG = LoopConfig(
    world=WORLD,
    rounds=1,
    filter=FilterConfig(rule=TopFractionRule(fraction=0.7)),
    evaluate=EvaluateConfig(best_of=(1, 4)),
)
DOMAIN = load_domain(CFG)
HELDOUT, TRUTH = filmed(40)
POOL, POOL_TRUTH = filmed(60, start=100)
NONSENSE = "do <b>nothing</b>"
"""Sentence of the wrong labels."""


@cache
def items(skill: float, with_best_of: int = 20) -> pa.Table:
    fdp = ScriptedFDP(skill=skill, sure=lambda action: "ring" not in action)
    return evaluate_heldout(HELDOUT, TRUTH, ScriptedIDM(), fdp, CFG, 0, with_best_of)


def pool_labels(num_wrong: int = 20, num_empty: int = 3) -> pa.Table:
    """Labels of the pool: first the empty ones, then the wrong ones; later = more confident."""
    rows = []
    truth = zip(POOL["pair_id"].to_pylist(), POOL["action"].to_pylist(), strict=True)
    for number, (pair, action) in enumerate(truth):
        empty, wrong = number < num_empty, number < num_empty + num_wrong
        logprob = float("nan") if empty else -1.0 + number / 60
        rows.append(
            {
                "label_id": f"label-{pair}",
                "pair_id": pair,
                "clip_class": "",
                "round_id": 1,
                "idm_digest": "1" * 64,
                "prompt_version": "1",
                "decode": "{}",
                "action": "" if empty else NONSENSE if wrong else action,
                "token_logprobs": [] if empty else [logprob],
                "scores": {
                    "mean_logprob": logprob,
                    "min_logprob": float("nan") if empty else -1.0,
                    "sum_logprob": logprob,
                },
            }
        )
    return pa.Table.from_pylist(rows, LABEL_SCHEMA).sort_by("label_id")


def label_tables(labels: pa.Table, truth: pa.Table | None = POOL_TRUTH) -> LabelTables:
    decisions = decide(labels, CFG.filter)
    decided = labels
    for name in ("accepted", "score", "reason"):
        decided = decided.append_column(name, decisions[name])
    ids = POOL["pair_id"].to_pylist()
    return LabelTables(
        accepted=decisions["accepted"].to_numpy(),
        score=decisions["score"].to_numpy(),
        take=decided.take,
        read=lambda: decided,
        pairs=lambda pair_ids: POOL.take([ids.index(pair) for pair in pair_ids]),
        truth=truth,
        domain=DOMAIN,
    )


def report(round_id: int, labels: pa.Table | None = None) -> RoundReport:
    metrics, reasons = summarise(items(0.4 + 0.4 * round_id)), {}
    if labels is not None:
        decisions = decide(labels, CFG.filter)
        reasons = reason_counts(decisions)
        correct = correct_labels(labels, POOL_TRUTH, DOMAIN)
        metrics |= label_accuracy(decisions["accepted"].to_numpy(), correct)
    return RoundReport(
        round_id=round_id,
        num_labelled=sum(reasons.values()),
        num_accepted=reasons.get("accepted", 0),
        reasons=reasons,
        metrics=metrics,
        models={"idm_digest": "1" * 64, "fdp_digest": "2" * 64},
    )


def store_run(root: Path, labels: pa.Table, with_best_of: int = 20) -> RunFolder:
    """Rounds 0 and 1; round 1 labelled the pool."""
    run = RunFolder(root)
    with run.claimed(CFG):
        pass
    write_table(run.data / "heldout.parquet", HELDOUT, TRANSITION_SCHEMA)
    write_table(run.data / "pool.parquet", POOL.select(PAIR_SCHEMA.names), PAIR_SCHEMA)
    truth = pa.concat_tables([TRUTH, POOL_TRUTH])
    write_table(run.data / "truth.parquet", truth, TRUTH_SCHEMA)
    ledger = Ledger(run.ledger)
    ledger.write_attempt(1, labels, Shard(start=0, stop=labels.num_rows))
    merged = ledger.merge(1, "1" * 64, run.labels(1))
    ledger.commit(1, merged, [decide(labels, CFG.filter)], {})
    for round_id in (0, 1):
        here = run.round(round_id)
        found = items(0.4 + 0.4 * round_id, with_best_of)
        write_table(here / "results.parquet", found, results_schema(CFG.evaluate.best_of))
        finished = report(round_id, labels if round_id else None)
        write_json(here / "report.json", finished.to_json())
        write_json(here / "timings.json", {"train": 61.5, "evaluate": 20.0})
        (here / "train").mkdir()
        line = json.dumps({"step": 25, "loss": 1.5})
        (here / "train" / "fdp.jsonl").write_text(f"{line}\n")
    return run
