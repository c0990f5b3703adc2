"""An evaluation worker: both adapters of a round, writing one part per shard of held-out pairs."""

import pyarrow as pa

from dynamics.core.config import LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.places import Place
from dynamics.core.records import TRANSITION_SCHEMA, TRUTH_SCHEMA, DataRefs, ModelRef
from dynamics.evaluation.foresight import NUM_SOURCES, Foresight
from dynamics.evaluation.heldout import evaluate_heldout, results_schema
from dynamics.evaluation.probes import NUM_ASKED, Sentences, with_probes
from dynamics.inference.load import load_pair
from dynamics.storage.shards import Shard
from dynamics.storage.streams import Done
from dynamics.storage.tables import read_table, write_table


class EvaluationWorker:
    """Both adapters of a round on one base; writes evaluation parts."""

    def __init__(
        self, cfg: LoopConfig, data: DataRefs, models: ModelRef, parts: Place, round_id: int
    ) -> None:
        self._cfg = cfg
        self._parts = parts
        self._round_id = round_id
        self._idm, self._fdp = load_pair(models, cfg.model)
        self._truth = read_table(data.truth, TRUTH_SCHEMA) if data.truth else None
        labelled = read_table(data.labelled, TRANSITION_SCHEMA, ["action"])
        self._sentences = Sentences(labelled["action"].to_pylist(), load_domain(cfg))
        self._foresight = Foresight(
            self._idm, self._fdp, self._sentences.wordings, self._truth, cfg, round_id
        )
        self._every = max(1, data.heldout.num_rows // NUM_SOURCES)

    def run(self, item: Shard, rows: pa.Table) -> Done:
        """Evaluate a shard of the held-out pairs."""
        with_best_of = max(0, self._cfg.evaluate.num_best_of_items - item.start)
        results = evaluate_heldout(
            rows, self._truth, self._idm, self._fdp, self._cfg, self._round_id, with_best_of
        )
        asked = max(0, NUM_ASKED - item.start)
        results = with_probes(
            results, rows, self._fdp, self._sentences, self._cfg, self._round_id, asked
        )
        spaced = range(-item.start % self._every, rows.num_rows, self._every)
        results = self._foresight.fill(results, rows, spaced)
        schema = results_schema(self._cfg.evaluate.best_of)
        return Done(count=write_table(part_path(self._parts, item), results, schema).num_rows)


def part_path(parts: Place, shard: Shard) -> Place:
    """File of a shard's results until all shards are there."""
    return parts / f"{shard.start:08d}-{shard.stop:08d}.parquet"
