"""Every type that flows between stages.

Bulk rows live in Arrow tables with the schemas below; each stage adds columns or a table,
none fills a blank that an earlier one left. Between stages only the small references
(`DatasetRef`, `ModelRef`, `RoundReport`) travel, and all of them are JSON-able.
"""

import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from dynamics.core.config import GuardName
from dynamics.core.places import Place

PAIR_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),  # see pair_id()
        pa.field("clip_sha256", pa.string(), nullable=False),
        pa.field("clip_path", pa.string(), nullable=False),  # relative to the pool's root
        pa.field("clip_class", pa.string(), nullable=False),  # class folder, "" when there is none
        pa.field("frame0", pa.int32(), nullable=False),  # frame index in the clip
        pa.field("frame1", pa.int32(), nullable=False),
        pa.field("t0_s", pa.float64(), nullable=False),
        pa.field("t1_s", pa.float64(), nullable=False),
        pa.field("motion", pa.float32(), nullable=False),  # mean |change| over R, G, B, 0..1
        pa.field("source_codes", pa.list_(pa.uint16()), nullable=False),  # L codes of frame0
        pa.field("target_codes", pa.list_(pa.uint16()), nullable=False),  # L codes of frame1
        # Squared L2 distance of the pre-quantisation features of the two frames, one per code:
        # the paper's recognition weights before any normalisation (section 1.4, w_l).
        pa.field("recognition", pa.list_(pa.float32()), nullable=False),
    ]
)
"""Unlabelled frame pairs (`FramePair` rows): what ingest writes.

Example: ``fb5eab9b..., 495870ef..., 000040.mp4, "", 0, 2, 0.0, 0.333, 0.0204, [436, 436, 112, ...],
[436, 112, 436, ...], [0.0004, 13.9, 14.0, ...]``.
"""

TRANSITION_SCHEMA = pa.schema(
    [
        *PAIR_SCHEMA,
        pa.field("action", pa.string(), nullable=False),  # the action sentence
        pa.field("origin", pa.string(), nullable=False),  # "labelled", or the label_id
    ]
)
"""Labelled pairs: what training reads.

Example: the pair above, then ``shove the yellow cross one step left, labelled``.
"""

LABEL_SCHEMA = pa.schema(
    [
        pa.field("label_id", pa.string(), nullable=False),  # see label_id()
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("clip_class", pa.string(), nullable=False),
        pa.field("round_id", pa.int32(), nullable=False),
        pa.field("idm_digest", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string(), nullable=False),
        pa.field("decode", pa.string(), nullable=False),  # canonical JSON of the decode parameters
        pa.field("action", pa.string(), nullable=False),  # the action sentence as decoded
        # Natural log, one per generated token, end-of-action included; each <= 0.
        pa.field("token_logprobs", pa.list_(pa.float32()), nullable=False),
        # Name in SCORES to value, keys sorted; only what was measured: the configured score's
        # evidence may cost model time. Higher is more confident. As exact as the log-probs that
        # the scores are made of; the filter compares these very numbers.
        pa.field(
            "scores",
            pa.map_(pa.string(), pa.field("value", pa.float32(), nullable=False)),
            nullable=False,
        ),
    ]
)
"""Pseudo-labels with their confidence: what the ledger stores.

Example: ``00cad3c5..., 1ef22bc9..., "", 3, 95ef44fc..., tiny-1, {"max_action_tokens": 12,
"candidates": 8}, paint the red square blue, [-0.582, -0.000, -0.003, ...], {"fdp_likelihood":
-0.394, "mean_logprob": -0.100, "min_logprob": -0.582, "noisy_channel": -0.992, "sum_logprob":
-0.598}``.
"""

ScoreScale = Literal["log_probability", "probability"]
"""Scale of a score: the probability that its label is correct, or the natural log of it."""

DECISION_SCHEMA = pa.schema(
    [
        pa.field("label_id", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("accepted", pa.bool_(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # "accepted", "below_threshold", ...
    ]
)
"""Decisions of the filter, one row per label, each with its reason.

Example: ``00cad3c5..., 1ef22bc9..., true, -0.992, accepted``.
"""

TRUTH_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),  # the sentence that was carried out
        pa.field("source_state", pa.string(), nullable=False),  # canonical text of the scene
        pa.field("target_state", pa.string(), nullable=False),
    ]
)
"""Ground truth of filmed pairs. Measures results; training never reads it for the pool.

Example: ``fb5eab9b..., shove the yellow cross one step left, 4:0,0,0,12,0,5,..., 4:0,0,12,0,...``.
"""


PICTURE_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("source", pa.binary(), nullable=False),  # PNG of the frame before it was encoded
        pa.field("target", pa.binary(), nullable=False),
    ]
)
"""Real frames of the first held-out pairs of a real data set: shown beside decoded ones."""


def stable_hash(*parts: str | int | float) -> str:
    """First 32 hex digits of the sha256 of the parts; the key of every row."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:32]


def pair_id(clip_sha256: str, frame0: int, frame1: int) -> str:
    """Key of a frame pair: ingesting the same clip again adds nothing."""
    return stable_hash(clip_sha256, frame0, frame1)


def label_id(pair: str, idm_digest: str, prompt_version: str, decode: str) -> str:
    """Key of a label: the same model, prompt and decode parameters label a pair once."""
    return stable_hash(pair, idm_digest, prompt_version, decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRef:
    """A table that a stage wrote: a Parquet file, or a folder of parts."""

    path: Place
    num_rows: int
    digest: str
    """sha256 of the file's bytes; of a table in parts, of its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRefs:
    """The tables that `prepare` gives the loop."""

    labelled: DatasetRef
    """TRANSITION_SCHEMA; the labelled set."""
    pool: DatasetRef
    """PAIR_SCHEMA; the unlabelled pool."""
    heldout: DatasetRef
    """TRANSITION_SCHEMA; never trained or tuned on."""
    truth: DatasetRef | None
    """TRUTH_SCHEMA over pool and held-out pairs; None for real video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """One base and the two adapters of a round."""

    base: Place
    """Checkpoint folder in the Hugging Face layout."""
    idm: Place
    """peft adapter folder: inverse dynamics, (frame, next frame) -> action sentence."""
    fdp: Place
    """peft adapter folder: forward dynamics prediction, (frame, action) -> next frame."""
    idm_digest: str
    """sha256 over base and adapter weights; part of every label's key."""
    fdp_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % bootstrap interval over items."""

    value: float
    low: float
    high: float
    num_items: int

    def percent(self) -> str:
        """For tables: ``71.3 [68.5, 74.0]`` in percent."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardResult:
    """One guard's result for a round."""

    name: GuardName
    value: float
    limit: float
    passed: bool
    message: str
    """One line with the numbers and, when it did not pass, the ways out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """Measurements of a round; the file is the round's last write: it exists = it is done."""

    round_id: int
    num_labelled: int
    num_accepted: int
    reasons: dict[str, int]
    """Rows per decision reason, all reasons counted."""
    metrics: dict[str, Estimate]
    """Flat names, the same every round, e.g. ``eval/fdp_success``."""
    models: dict[str, str]
    """The fields of `ModelRef`, paths relative to the run folder where they lie in it."""
    train: dict[str, float] = field(default_factory=dict)
    """Final losses and step counts, deterministic."""
    guards: tuple[GuardResult, ...] = ()
    """Results of the guards that had something to measure."""
    accepted_guards: tuple[GuardName, ...] = ()
    """Guards that did not pass and were overridden."""

    @property
    def blocked_by(self) -> tuple[GuardResult, ...]:
        """Results that keep the round from being promoted."""
        return tuple(
            result
            for result in self.guards
            if not result.passed and result.name not in self.accepted_guards
        )

    @property
    def promoted(self) -> bool:
        """True when later rounds may build on this one and the generator may serve it."""
        return not self.blocked_by

    def accepting(self, names: Collection[GuardName]) -> "RoundReport":
        """The report with the blocking ones of these guards overridden."""
        accepted = tuple(result.name for result in self.blocked_by if result.name in names)
        return replace(self, accepted_guards=self.accepted_guards + accepted)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> "RoundReport":
        """Inverse of `to_json`."""
        metrics = {name: Estimate(**value) for name, value in payload["metrics"].items()}
        guards = tuple(GuardResult(**result) for result in payload.get("guards", ()))
        accepted = tuple(payload.get("accepted_guards", ()))
        return cls(**{**payload, "metrics": metrics, "guards": guards, "accepted_guards": accepted})
