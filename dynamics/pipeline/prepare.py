"""The data of a run: film or find the videos, ingest them all through the same code.

A real data set's labelled pairs come from `dynamics.data.labelled`; it has no ground truth.
Each table is its part's last write: a part whose table exists is done.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Split, load_simulator
from dynamics.core.progress import Progress
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, TRUTH_SCHEMA, DataRefs, DatasetRef
from dynamics.data.labelled.build import build_labelled, built
from dynamics.data.units import Encoding, Read, Unit, equal_codes
from dynamics.data.video.ingest import Folder, IngestReport, ingest_videos
from dynamics.models import load_image_tokenizer, load_tokens
from dynamics.models.image_tokenizer import ImageTokenizer, Precision
from dynamics.storage.pairs import is_whole, write_pairs
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from dynamics.storage.streams import RunStream
from dynamics.storage.tables import dataset_ref, read_table, write_table

MIN_EQUAL_CODES = 0.99
"""Share of a unit's codes that bfloat16 must not change to be used by itself."""


def prepare(
    cfg: LoopConfig, folder: RunFolder, images: ImageTokenizer, run: RunStream, progress: Progress
) -> DataRefs:
    """Make the missing tables of the labelled set, pool, held-out pairs and ground truth.

    Args:
        cfg: of the run.
        folder: of the run.
        images: the base's image tokenizer; it encodes nothing.
        run: runs the work of ingest.
        progress: called as the work goes on.

    Raises:
        UserError: no video given and none filmed, no usable video in the pool's folder, no usable
            pair in the labelled set, or a full disk.
    """
    source = _Source(cfg, folder, images, run, progress)
    if cfg.labelled.dataset is not None:
        real = source.real()
        names = read_table(real["heldout"], TRANSITION_SCHEMA, ["clip_path"])["clip_path"]
        pool = source.pool(frozenset(names.to_pylist()))
        return DataRefs(labelled=real["labelled"], pool=pool, heldout=real["heldout"], truth=None)
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
        self,
        cfg: LoopConfig,
        folder: RunFolder,
        images: ImageTokenizer,
        run: RunStream,
        progress: Progress,
    ) -> None:
        self._cfg = cfg
        self._folder = folder
        self._images = images
        self._run = run
        self._progress = progress

    def labelled(self, split: Split, num_pairs: int) -> DatasetRef:
        """Filmed pairs with their true sentence (TRANSITION_SCHEMA)."""
        out = self._folder.table(split)
        if is_whole(out):
            return dataset_ref(out)
        clips = self._filmed(split, num_pairs, max_pairs=None)
        ref = self._ingest(f"{split}/pairs", [clips])[0]
        pairs = read_table(ref, PAIR_SCHEMA)
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
        refs, counted = build_labelled(
            self._cfg,
            self._folder,
            self._images,
            self._encoding(),
            fits,
            self._run,
            self._progress,
        )
        self._count(counted)
        return refs

    def pool(self, without: frozenset[str] = frozenset()) -> DatasetRef:
        """The unlabelled pairs (PAIR_SCHEMA), filmed or from the user's folders.

        Clips of the names in ``without``, which held-out pairs were cut from, are left out.
        """
        out = self._folder.pool
        if is_whole(out):
            return dataset_ref(out)
        cfg = self._cfg.pool
        if not cfg.parts:
            return self._ingest("pool", [self._filmed("pool", cfg.num_pairs, cfg.num_pairs)])[0]
        several = len(cfg.parts) > 1
        folders = [
            Folder(
                root=part.path,
                source=part.source,
                keyframes=cfg.keyframes,
                max_pairs=part.num_pairs or cfg.num_pairs,
                prefix=f"{part.name}/" if several else "",
                what=f"pool/{part.name}" if several else "pool",
                without=without,
            )
            for part in cfg.parts
        ]
        ref, reports = self._ingest("pool", folders)
        if several:
            twice = sum(report.in_two_folders for report in reports)
            self._count({"pool": {"num_pairs": ref.num_rows, "in_two_folders": twice}})
        return ref

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

    def _filmed(self, split: Split, num_pairs: int, max_pairs: int | None) -> Folder:
        """The folder of a split's videos, which are filmed where they are missing."""
        folder, simulator = self._folder.data / split, load_simulator(self._cfg)
        simulator.film(split, num_pairs, folder, self._progress)
        return Folder(
            root=folder / "clips",
            keyframes=simulator.keyframes(split),
            max_pairs=max_pairs,
            by_name=True,
            what=split,
        )

    def _ingest(
        self, name: str, folders: Sequence[Folder]
    ) -> tuple[DatasetRef, list[IngestReport]]:
        """The table ``name`` of some folders' videos (PAIR_SCHEMA), and their counts."""
        ref, reports = ingest_videos(
            folders,
            self._folder.table(name),
            self._cfg.pool,
            self._images,
            self._encoding(),
            part_clips=self._cfg.ingest.part_clips,
            run=self._run,
            progress=self._progress,
        )
        named = zip(folders, reports, strict=True)
        self._count({folder.what: report.to_json() for folder, report in named})
        return ref, reports

    def _encoding(self) -> Encoding:
        cfg = self._cfg
        load = partial(load_image_tokenizer, cfg.model.family, cfg.base_path(), cfg.model.device)
        return Encoding(codes=self._folder.codes, load=load, decide=partial(self._precision, load))

    def _precision(
        self, load: Callable[[Precision], ImageTokenizer], first: Unit[Any], read: Read
    ) -> Precision:
        """The precision that all frames of the run are encoded in."""
        if self._cfg.ingest.precision != "auto":
            return self._cfg.ingest.precision
        if self._cfg.model.device == "cpu":
            return "float32"
        if (decided := self._counted().get("precision")) is None:
            equal = equal_codes(load, first, read, self._run, self._progress)
            chosen = "bfloat16" if equal >= MIN_EQUAL_CODES else "float32"
            decided = {"chosen": chosen, "equal_codes": equal}
            self._count({"precision": decided})
        return "bfloat16" if decided["chosen"] == "bfloat16" else "float32"

    def _counted(self) -> dict[str, Any]:
        return read_json(self._folder.ingest) if self._folder.ingest.exists() else {}

    def _count(self, counted: dict[str, Any]) -> None:
        """Add counts to the run's ingest.json."""
        write_json(self._folder.ingest, self._counted() | counted)


def sentence_limit(cfg: LoopConfig, images: ImageTokenizer) -> Callable[[str], bool]:
    """Predicate: an action sentence fits the base's prompts. A longer one would stop a fit."""
    tokens = load_tokens(cfg.model.family, cfg.base_path(), images)
    limit = tokens.prompts.action_tokens
    return lambda action: 1 <= len(tokens.text_ids(action)) <= limit
