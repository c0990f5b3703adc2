"""A labelling worker: a round's IDM, writing the labels of one shard of the pool at a time."""

import pyarrow as pa

from dynamics.core.config import LoopConfig
from dynamics.core.records import ModelRef
from dynamics.inference.load import load_idm, load_pair
from dynamics.labelling.confidence import SCORES
from dynamics.labelling.labeller import Labeller
from dynamics.models import load_image_tokenizer
from dynamics.storage.ledger import Ledger
from dynamics.storage.shards import Shard
from dynamics.storage.streams import Done


class LabelWorker:
    """An IDM, with the FDP only when the configured score needs it; writes into the ledger."""

    def __init__(self, cfg: LoopConfig, models: ModelRef, ledger: Ledger, round_id: int) -> None:
        if SCORES[cfg.filter.score].needs == "fdp_loglik":
            idm, fdp = load_pair(models, cfg.model)
            self._labeller = Labeller(idm, fdp, cfg, fdp.images)
        else:
            images = load_image_tokenizer(cfg.model.family, models.base)
            self._labeller = Labeller(load_idm(models, cfg.model), None, cfg, images)
        self._ledger = ledger
        self._round_id = round_id

    def run(self, item: Shard, rows: pa.Table) -> Done:
        """Label a shard of the pool."""
        labels = self._labeller.label(rows, self._round_id)
        self._ledger.write_attempt(self._round_id, labels, item)
        return Done(count=rows.num_rows)
