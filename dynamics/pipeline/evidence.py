"""Evidence for the guards of a round, read from the run folder."""

from dataclasses import asdict
from functools import partial

import pyarrow as pa

from dynamics.core.config import LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.progress import Progress
from dynamics.core.records import (
    TRANSITION_SCHEMA,
    DataRefs,
    DatasetRef,
)
from dynamics.evaluation.guards.leakage import Leakage
from dynamics.evaluation.guards.rules import GuardEvidence
from dynamics.evaluation.guards.search import find_leakage
from dynamics.evaluation.heldout import results_schema
from dynamics.models import load_image_tokenizer
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from dynamics.storage.streams import RunStream
from dynamics.storage.tables import read_table


def guard_evidence(
    cfg: LoopConfig,
    folder: RunFolder,
    frame_px: int,
    data: DataRefs,
    decisions: DatasetRef | None,
    round_id: int,
    run: RunStream,
    progress: Progress,
) -> GuardEvidence:
    """Evidence of an evaluated round; ``decisions`` are None in round 0."""
    schema = results_schema(cfg.evaluate.best_of)
    labelled = read_table(data.labelled, TRANSITION_SCHEMA, ["action"])
    return GuardEvidence(
        results=read_table(folder.results(round_id), schema),
        heldout=read_table(data.heldout, TRANSITION_SCHEMA),
        labelled_actions=labelled["action"].to_pylist(),
        leakage=_leakage(cfg, folder, frame_px, data, run, progress),
        labels=_labels(Ledger(folder.ledger), round_id) if decisions else None,
        first_results=read_table(folder.results(0), schema) if round_id else None,
        domain=load_domain(cfg),
    )


def _labels(ledger: Ledger, round_id: int) -> pa.Table:
    """Sentences, which are often the same, and decisions."""
    tables = [
        pa.table({"action": rows["action"].dictionary_encode(), "accepted": rows["accepted"]})
        for rows in ledger.iter_decided(round_id, ["action"])
    ]
    return pa.concat_tables(tables).unify_dictionaries()


def _leakage(
    cfg: LoopConfig,
    folder: RunFolder,
    frame_px: int,
    data: DataRefs,
    run: RunStream,
    progress: Progress,
) -> Leakage:
    """Leakage between the pool and the held-out pairs, computed once a run."""
    path = folder.leakage
    tables = {"pool": data.pool.digest, "heldout": data.heldout.digest}
    if path.exists() and (known := read_json(path))["tables"] == tables:
        return Leakage(**known["found"])
    model = cfg.model
    load = partial(load_image_tokenizer, model.family, cfg.base_path(), model.device)
    found = find_leakage(data.pool, data.heldout, load, frame_px, run, progress)
    write_json(path, {"tables": tables, "found": asdict(found)})
    return found
