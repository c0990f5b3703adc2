"""The data of a run: film or find the videos, ingest them all through the same code.

A real data set's labelled pairs come from `dynamics.data.labelled`; it has no ground truth.
Each table is its part's last write: a part whose table exists is done.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.config import KeyframeConfig, LoopConfig, PoolConfig, PoolPart
from dynamics.core.domain import Split, load_simulator
from dynamics.core.places import Place
from dynamics.core.progress import Progress
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, TRUTH_SCHEMA, DataRefs, DatasetRef
from dynamics.data.labelled.build import build_labelled, built
from dynamics.data.video.ingest import ingest_folder
from dynamics.models import load_tokens
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.pairs import is_whole, write_pairs
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from dynamics.storage.tables import dataset_ref, read_table, write_table


def prepare(
    cfg: LoopConfig, folder: RunFolder, images: ImageTokenizer, progress: Progress
) -> DataRefs:
    """Make the missing tables of the labelled set, pool, held-out pairs and ground truth.

    Raises:
        UserError: no video given and none filmed, no usable video in the pool's folder, no usable
            pair in the labelled set, or a full disk.
    """
    source = _Source(cfg, folder, images, progress)
    if cfg.labelled.dataset is not None:
        real = source.real()
        return DataRefs(
            labelled=real["labelled"], pool=source.pool(), heldout=real["heldout"], truth=None
        )
    labelled = source.labelled("labelled", cfg.labelled.num_pairs)
    heldout = source.labelled("heldout", cfg.labelled.num_heldout)
    pool = source.pool()
    return DataRefs(
        labelled=labelled, pool=pool, heldout=heldout, truth=source.truth(pool, heldout)
    )


def prepared(folder: RunFolder) -> DataRefs:
    """The data of a run that `prepare` has finished.

    Raises:
        UserError: a table is missing or damaged.
    """
    return DataRefs(
        labelled=dataset_ref(folder.labelled),
        pool=dataset_ref(folder.pool),
        heldout=dataset_ref(folder.heldout),
        truth=dataset_ref(folder.truth) if folder.truth.exists() else None,
    )


class _Source:
    def __init__(
        self, cfg: LoopConfig, folder: RunFolder, images: ImageTokenizer, progress: Progress
    ) -> None:
        self._cfg = cfg
        self._folder = folder
        self._images = images
        self._progress = progress

    def labelled(self, split: Split, num_pairs: int) -> DatasetRef:
        """Filmed pairs with their true sentence (TRANSITION_SCHEMA)."""
        out = self._folder.table(split)
        if is_whole(out):
            return dataset_ref(out)
        pairs = self._filmed(split, num_pairs)
        truth = load_simulator(self._cfg).truth(pairs, self._folder.data / split)
        rows = pc.index_in(pairs["pair_id"], value_set=truth["pair_id"].combine_chunks())
        known = pairs.filter(pc.is_valid(rows))
        labelled = known.append_column("action", truth["action"].take(pc.drop_null(rows)))
        origin = pa.array(["labelled"] * labelled.num_rows, pa.string())
        labelled = labelled.append_column("origin", origin).slice(0, num_pairs)
        return write_pairs(out, labelled, TRANSITION_SCHEMA, self._folder.codes)

    def real(self) -> dict[str, DatasetRef]:
        """Labelled and held-out pairs of a real data set (TRANSITION_SCHEMA)."""
        if (done := built(self._folder)) is not None:
            return done
        fits = sentence_limit(self._cfg, self._images)
        refs, counted = build_labelled(self._cfg, self._folder, self._images, fits, self._progress)
        self._count(counted)
        return refs

    def pool(self) -> DatasetRef:
        """The unlabelled pairs (PAIR_SCHEMA), filmed or from the user's folders."""
        out = self._folder.pool
        if is_whole(out):
            return dataset_ref(out)
        cfg = self._cfg.pool
        if not cfg.parts:
            pairs = self._filmed("pool", cfg.num_pairs).slice(0, cfg.num_pairs)
            return write_pairs(out, pairs, PAIR_SCHEMA, self._folder.codes)
        if not cfg.more:
            return self._ingest("pool", cfg.parts[0], out, cfg.keyframes, cfg.num_pairs)
        return write_pairs(out, self._merged(cfg), PAIR_SCHEMA, self._folder.codes)

    def _merged(self, cfg: PoolConfig) -> pa.Table:
        """Pairs of several folders; clips and classes carry their folder's name.

        A clip with equal bytes in two folders counts for the first.
        """
        tables = []
        for part in cfg.parts:
            split = f"pool/{part.name}"
            path = self._folder.table(split)
            ref = (
                dataset_ref(path)
                if is_whole(path)
                else self._ingest(split, part, path, cfg.keyframes, part.num_pairs or cfg.num_pairs)
            )
            rows = read_table(ref, PAIR_SCHEMA)
            for name in ("clip_path", "clip_class"):
                named = pc.binary_join_element_wise(part.name, rows[name], "/")
                place = rows.schema.get_field_index(name)
                rows = rows.set_column(place, PAIR_SCHEMA.field(name), named)
            tables.append(rows)
        merged = pa.concat_tables(tables)
        ids = merged["pair_id"].to_pylist()
        firsts = sorted({pair: row for row, pair in reversed(list(enumerate(ids)))}.values())
        self._count({"pool": {"num_pairs": len(firsts), "in_two_folders": len(ids) - len(firsts)}})
        return merged.take(firsts)

    def truth(self, pool: DatasetRef, heldout: DatasetRef) -> DatasetRef:
        """Ground truth of the held-out pairs, and of a filmed pool (TRUTH_SCHEMA)."""
        out = self._folder.truth
        if out.exists():
            return dataset_ref(out)
        pairs: dict[Split, pa.Table] = {"heldout": read_table(heldout, TRANSITION_SCHEMA)}
        if not self._cfg.pool.parts:
            pairs["pool"] = read_table(pool, PAIR_SCHEMA)
        simulator = load_simulator(self._cfg)
        parts = [simulator.truth(rows, self._folder.data / split) for split, rows in pairs.items()]
        return write_table(out, pa.concat_tables(parts), TRUTH_SCHEMA)

    def _filmed(self, split: Split, num_pairs: int) -> pa.Table:
        """Film a split and read it back like any other video (PAIR_SCHEMA)."""
        folder, simulator = self._folder.data / split, load_simulator(self._cfg)
        simulator.film(split, num_pairs, folder, self._progress)
        clips, keyframes = PoolPart(path=folder / "clips"), simulator.keyframes(split)
        ref = self._ingest(split, clips, self._folder.table(f"{split}/pairs"), keyframes, None)
        return read_table(ref, PAIR_SCHEMA)

    def _ingest(
        self,
        split: str,
        part: PoolPart,
        out: Place,
        keyframes: KeyframeConfig,
        max_pairs: int | None,
    ) -> DatasetRef:
        report = ingest_folder(
            part.path,
            self._cfg.pool,
            self._images,
            out,
            keyframes=keyframes,
            source=part.source,
            max_pairs=max_pairs,
            num_workers=2,
            codes=self._folder.codes,
            progress=lambda done, total, _: self._progress(done, total, f"ingest {split}"),
        )
        self._count({split: report.to_json()})
        return report.dataset

    def _count(self, counted: dict[str, Any]) -> None:
        """Add counts to the run's ingest.json."""
        path = self._folder.ingest
        write_json(path, (read_json(path) if path.exists() else {}) | counted)


def sentence_limit(cfg: LoopConfig, images: ImageTokenizer) -> Callable[[str], bool]:
    """Predicate: an action sentence fits the base's prompts. A longer one would stop a fit."""
    tokens = load_tokens(cfg.model.family, cfg.base_path(), images)
    limit = tokens.prompts.action_tokens
    return lambda action: 1 <= len(tokens.text_ids(action)) <= limit
