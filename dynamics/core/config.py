"""The configuration tree: strict, frozen, every field read by something.

``load("configs/tabletop.yaml", ["pool.path=clips", "rounds=1"])`` reads a YAML file, applies
dotted overrides and validates. An unknown key is a `UserError` that names the nearest key.

A key decides what a run results in, and a run that continues refuses another value of it, unless
its annotation carries a `Mark`: ``num_actors: Annotated[int, Mark.FREE]``.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dynamics.core.places import ConfigPlace, Place, on_this_machine
from dynamics.core.registry import NameIn, SectionIn, entries

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

PACKAGE_ROOT = Path(__file__).resolve().parents[1]
REPOSITORY_ROOT = PACKAGE_ROOT.parent
INSTALLED = (PACKAGE_ROOT / "configs").is_dir()
"""True where a wheel was installed, which holds the checkout's configs and ray_jobs itself."""
CONFIGS = (PACKAGE_ROOT if INSTALLED else REPOSITORY_ROOT) / "configs"
CLUSTER_ROOT = PACKAGE_ROOT / "cluster" if INSTALLED else REPOSITORY_ROOT
"""Folder that holds ``ray_jobs``; on the import path of the processes that need it."""

ScoreName = Annotated[str, NameIn("dynamics.labelling.confidence:SCORES")]
VerifierName = Annotated[str, NameIn("dynamics.inference.verifiers:VERIFIERS")]
GuardName = Annotated[str, NameIn("dynamics.evaluation.guards.rules:GUARDS")]
DatasetName = Annotated[str, NameIn("dynamics.data.labelled:DATASETS")]
SourceName = Annotated[str, NameIn("dynamics.data.video.sources:SOURCES")]
DomainName = Annotated[str, NameIn("dynamics.core.domain:DOMAINS")]
ObjectiveName = Annotated[str, NameIn("dynamics.training.objectives:OBJECTIVES")]
FamilyName = Annotated[str, NameIn("dynamics.models:FAMILIES")]
DecoderName = Annotated[str, NameIn("dynamics.inference.decoder:DECODERS")]
Device = Literal["cpu", "cuda"]


LocalPath = Annotated[Path, BeforeValidator(on_this_machine)]
"""The type of a path in the config that cannot lie in a store."""


class Mark(Enum):
    """Exception for a key of a continued run; on a section it holds for all keys within."""

    FREE = "may change: where and how fast a run goes on, how far, and what follows it"
    CONTENT = "a path: it may change to one where files of equal content lie"


class Strict(BaseModel):
    """Base of every section: unknown keys and infinite numbers are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WorldConfig(Strict):
    """What is filmed: the procedural tabletop (`dynamics.tabletop`), or an environment."""

    env: str | None = None
    """Gymnasium id of the domain's environment, e.g. ``MiniGrid-DoorKey-6x6-v0``, where the domain
    is not the tabletop. The tabletop's own are the keys from ``grid`` to ``distractors``."""
    grid: int = Field(default=4, ge=2, le=8)
    """Cells per side; a frame is ``grid * cell_px`` pixels square."""
    cell_px: int = Field(default=8, ge=4, le=32)
    min_objects: int = Field(default=3, ge=1)
    max_objects: int = Field(default=4, ge=1)
    camera_jitter_px: float = Field(default=0.0, ge=0, le=2)
    """Standard deviation of a whole-frame shift, in frame pixels."""
    distractors: int = Field(default=0, ge=0, le=3)
    """Small moving specks that no action touches."""
    film_scale: int = Field(default=4, ge=1, le=16)
    """Videos are filmed this many times larger than the frames the model sees. 4 keeps the chroma
    samples of yuv420p aligned with the model's pixels: 3 cost 2.5 points of frames read back."""
    hold_frames: int = Field(default=3, ge=2, le=30)
    """Video frames a state is held before the next action."""
    fps: int = Field(default=6, ge=1, le=60)
    actions_per_clip: int = Field(default=6, ge=1, le=50)

    @property
    def frame_px(self) -> int:
        """Side of the square frame that the model sees, in pixels."""
        return self.grid * self.cell_px

    @model_validator(mode="after")
    def _objects_fit(self) -> "WorldConfig":
        if not self.min_objects <= self.max_objects < self.grid**2:
            raise ValueError("needs min_objects <= max_objects < grid * grid")
        return self


class KeyframeConfig(Strict):
    """Choice of the frames of a clip that become pairs (paper, section 3.2: K_f and I_f)."""

    top_k: int = Field(default=6, ge=2)
    """Most frames picked per clip, by motion."""
    per_minute: float = Field(default=6.0, ge=0)
    """Most frames picked per minute of a clip so long that this is more than ``top_k``."""
    spacing_frames: int = Field(default=20, ge=1)
    """Least distance between two picks, in frames."""
    min_change: float = Field(default=0.004, ge=0, le=1)
    """Pairs that change less than this (mean over R, G, B, 0..1) are near-copies: rejected."""
    max_cut: float = Field(default=0.5, ge=0, le=1)
    """Pairs whose colour-histogram distance (0..1) is above this span a shot cut: rejected."""


class PoolPart(Strict):
    """One more folder of unlabelled video."""

    path: Annotated[ConfigPlace, Mark.CONTENT]
    source: SourceName = "folder"
    num_pairs: int | None = Field(default=None, ge=1)
    """The most pairs to take from it; none = pool.num_pairs."""

    @property
    def name(self) -> str:
        """The folder's name, which begins the names of its clips and classes."""
        return self.path.name


class PoolConfig(Strict):
    """Unlabelled video."""

    path: Annotated[ConfigPlace | None, Mark.CONTENT] = None
    """Folder of videos (tars for webdataset); none = filmed."""
    source: SourceName = "folder"
    """Layout of the folder, and where a clip's class stands (`dynamics.data.video.sources`)."""
    more: tuple[PoolPart, ...] = ()
    """Further folders, e.g. the paper's three sources: ``[{path: k700, source: kinetics700}]``."""
    num_pairs: int = Field(default=12_000, ge=1)
    """Pairs to film, or the most to take from each folder."""
    keyframes: KeyframeConfig = KeyframeConfig()
    decode_timeout_s: Annotated[float, Mark.FREE] = Field(default=60.0, gt=0)
    """Processor seconds that any clip may take, and wall seconds without any progress."""
    decode_cpu_per_s: Annotated[float, Mark.FREE] = Field(default=5.0, ge=0)
    """Further processor seconds per second of film."""
    decode_memory_mb: Annotated[int, Mark.FREE] = Field(default=2048, ge=256)
    max_bad_fraction: Annotated[float, Mark.FREE] = Field(default=0.5, ge=0, le=1)
    """More unreadable clips than this stop the run instead of shrinking the pool silently."""

    @property
    def parts(self) -> tuple[PoolPart, ...]:
        """Every folder; none when the pool is filmed."""
        first = () if self.path is None else (PoolPart(path=self.path, source=self.source),)
        return first + self.more

    @property
    def most_pairs(self) -> int:
        """Pairs to film, or the most that all folders together give."""
        wanted = [part.num_pairs or self.num_pairs for part in self.parts]
        return sum(wanted) if wanted else self.num_pairs

    @model_validator(mode="after")
    def _folders_differ(self) -> "PoolConfig":
        if self.more and self.path is None:
            raise ValueError("more needs path: the first folder stands there")
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(
                f"path and more need folders of different names, got {', '.join(names)}: clips and "
                "classes are told apart by them"
            )
        return self


class LabelledConfig(Strict):
    """The labelled set and the held-out set: filmed, or of a real data set."""

    dataset: DatasetName | None = None
    """Format of the data set at ``path`` (`dynamics.data.labelled`); none = filmed."""
    path: Annotated[ConfigPlace | None, Mark.CONTENT] = None
    """Folder of the data set, or one of its manifests."""
    heldout_path: Annotated[ConfigPlace | None, Mark.CONTENT] = None
    """The same for the held-out set, e.g. a validation split; none = a share of ``path``."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs that is held out, whole videos or pictures at a time."""
    mirror: dict[str, str] | None = None
    """Teach every labelled pair mirrored, too, with these words exchanged, e.g. ``{left: right}``;
    ``{}`` where no word tells the sides apart. None = not mirrored: who labelled it knows whether a
    mirrored picture is a true one (text, a handed robot)."""
    camera: str | None = None
    """Camera of a LeRobot dataset, e.g. ``observation.images.wrist``; none = the first."""
    num_pairs: int = Field(default=4096)
    """Pairs to film, or the most to take from the data set."""
    max_pairs: dict[str, int] = {}
    """Most pairs of a class in the labelled set, e.g. ``{kubric: 10000}``."""
    num_heldout: int = Field(default=1000)
    """Pairs to film, or the most to take from the held-out part."""

    @model_validator(mode="after")
    def _whole(self) -> "LabelledConfig":
        if (self.dataset is None) != (self.path is None):
            raise ValueError("dataset and path go together: which data set, and where it lies")
        if self.heldout_path is not None and self.dataset is None:
            raise ValueError("heldout_path needs dataset: which data set it is")
        if self.mirror is not None and self.dataset is None:
            raise ValueError("mirror needs dataset: filmed pairs are as many as wanted")
        if self.camera is not None and self.dataset != "lerobot":
            raise ValueError("camera needs dataset lerobot: it is a name in its info.json")
        if self.max_pairs and self.dataset is None:
            raise ValueError("max_pairs needs dataset: its keys are classes of that data set")
        if any(most < 1 for most in self.max_pairs.values()):
            raise ValueError("max_pairs must be at least 1 for every class it names")
        return self

    @model_validator(mode="after")
    def _not_empty(self) -> "LabelledConfig":
        if self.num_pairs < 1:
            raise ValueError(
                "num_pairs must be at least 1: without labelled pairs no IDM can be trained"
            )
        if self.num_heldout < 1:
            raise ValueError(
                "num_heldout must be at least 1: without held-out pairs nothing is measured"
            )
        return self


class ModelConfig(Strict):
    """The unified VLM."""

    family: FamilyName = "chameleon"
    base: Annotated[ConfigPlace, Mark.CONTENT] = Path("dynamics/assets/tiny-4x4")
    """Checkpoint folder (Hugging Face layout); relative paths count from the checkout, and in an
    installation from the current folder."""
    device: Annotated[Device, Mark.FREE] = "cpu"
    merge_adapters: Annotated[bool, Mark.FREE] = True
    """Label, verify and generate with each adapter merged into a base of its own: 1.6 times faster
    on a CPU. False keeps both adapters on one base, half the memory, for large models."""
    decoder: Annotated[DecoderName | None, Mark.FREE] = None
    """Engine that samples and scores (`dynamics.inference.decoder`); none = shared_prefix, the
    fastest, where it can compute the network's layers, else dynamic_cache."""


class PretrainConfig(Strict):
    """The base that ``dynamics pretrain`` makes from the run's own clips, at ``model.base``."""

    num_frames: int = Field(default=20_000, ge=2)
    """Most frames that are read, key frames of clips and labelled frames."""
    codes_a_side: tuple[Annotated[int, Field(ge=2, le=16)], ...] = (4, 5, 6, 7, 8)
    """Squares of a frame's side, each with a code, that are tried: the first that shows clearly
    what happens is taken."""
    levels: tuple[Annotated[int, Field(ge=2, le=16)], ...] = (5, 5, 5, 4)
    """Levels of each channel of a code (FSQ); their product is the number of codes."""
    trial_steps: int = Field(default=400, ge=1)
    """Steps of the image tokenizer on each size that is tried."""
    tokenizer_steps: int = Field(default=4000, ge=1)
    width: int = Field(default=96, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=3, ge=1)
    feed_forward: int = Field(default=256, ge=8)
    steps: int = Field(default=5000, ge=1)
    """Steps of the network, at most about a third of a second each on two cores."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "PretrainConfig":
        if self.width % (2 * self.heads):
            raise ValueError("width must be a multiple of twice the heads")
        if not self.codes_a_side or not self.levels:
            raise ValueError("codes_a_side and levels need at least one number")
        return self


class IngestConfig(Strict):
    """Videos and labelled pairs to codes; on a joined cluster a pool of actors does it."""

    num_actors: Annotated[int, Mark.FREE] = Field(default=2, ge=1)
    num_gpus_per_actor: Annotated[float, Mark.FREE] = Field(default=0.0, ge=0)
    """With model.device=cuda at least a share of one; decoding the guards' frames takes as many."""
    part_clips: Annotated[int | None, Mark.FREE] = Field(default=None, ge=1)
    """Clips, or labelled pairs, that are read, encoded and lost by a kill together; none = about
    32 MB of frames."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the image encoder; auto: bfloat16 on a GPU where it gives at least 99 % of the
    codes of the first clips. Decided once a run, see ingest.json."""


class LabelConfig(Strict):
    """The IDM actor pool."""

    batch_size: Annotated[int, Mark.FREE] = Field(default=256, ge=1)
    num_actors: Annotated[int, Mark.FREE] = Field(default=2, ge=1)
    num_gpus_per_actor: Annotated[float, Mark.FREE] = Field(default=0.0, ge=0)
    shard_rows: Annotated[int, Mark.FREE] = Field(default=2048, ge=1)
    """Rows per durable shard: a kill loses at most one shard per actor."""
    max_action_tokens: int = Field(default=12, ge=2)
    agreement_samples: int = Field(default=4, ge=2)
    candidates: int = Field(default=1, ge=1, le=16)
    """Sentences considered per pair: the greedy one, the rest sampled. The one that IDM and FDP
    together find likeliest becomes the label; more than one needs a filter.score that the FDP has a
    part in (fdp_likelihood, noisy_channel)."""


class FilterRule(Strict, ABC):
    """Base of the filter rules (`dynamics.labelling.filter.RULES`): one class per ``kind``."""

    kind: str
    reason: ClassVar[str]
    """Decision reason of the labels that the rule leaves out."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of LABEL_SCHEMA that the rule reads, of texts or numbers."""

    @abstractmethod
    def accepted(
        self, labels: "pa.Table", scores_B: "NDArray[np.float32]", eligible_B: "NDArray[np.bool_]"
    ) -> "NDArray[np.bool_]":
        """Mask of the accepted labels, bool [B]; all of them are eligible.

        Args:
            labels: the rule's `columns`, as dictionaries, sorted by label_id.
            scores_B: the configured score; higher is more confident.
            eligible_B: labels with a sentence and a finite score.
        """


class FilterConfig(Strict):
    """The rule that accepts labels, and the score that it compares."""

    score: ScoreName = "sum_logprob"
    rule: Annotated[FilterRule, SectionIn("dynamics.labelling.filter:RULES")] = Field(
        default={"kind": "top_fraction"}, validate_default=True
    )


class LoraConfig(Strict):
    """peft LoRA."""

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    train_embeddings: bool = True
    """Also train embeddings and head: without them words that the base never saw stay at random
    initialisation and the IDM cannot learn."""


class TaskTraining(Strict):
    """One task's values in place of those of `TrainConfig`; none = the same."""

    first_steps: int | None = Field(default=None, ge=1)
    round_steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    warmup_steps: int | None = Field(default=None, ge=0)


class TrainConfig(Strict):
    """Fine-tuning of the two adapters."""

    method: Literal["lora", "full"] = "lora"
    """peft LoRA, or all weights of the language model: a checkpoint per task instead of an adapter,
    which wants a lower learning rate."""
    objective: ObjectiveName = "nll"
    """Loss of a step; nll = cross-entropy of the answer's tokens."""
    strategy: Annotated[
        Literal["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"], Mark.FREE
    ] = "ddp"
    """Split of a task over its workers: a copy of the model each; weights, gradients and optimizer
    state split layer by layer (`fully_shard`); DeepSpeed's split of gradients and optimizer state
    (stage 2), and of weights, too (stage 3)."""
    schedule: Annotated[Literal["auto", "together", "sequence"], Mark.FREE] = "auto"
    """IDM and FDP side by side, each on half of the workers, or one after the other on all of them;
    auto = on GPUs what is shorter, on CPUs side by side, with DeepSpeed one after the other."""
    num_workers: Annotated[int, Mark.FREE] = Field(default=1, ge=1)
    """Most Ray Train workers per adapter: both together have twice as many. IDM and FDP already use
    one core each, so two workers per adapter pay only with more than two cores."""
    min_workers: Annotated[int, Mark.FREE] = Field(default=1, ge=1)
    """Fewest workers, of both adapters, that training begins and goes on with. It takes more, up to
    the most, as nodes come; the result does not depend on it."""
    max_failures: Annotated[int, Mark.FREE] = Field(default=3, ge=0)
    """Failures of workers in a row, with no checkpoint between, that training recovers from; nodes
    that the cluster announced to take away do not count."""
    num_gpus_per_worker: Annotated[float, Mark.FREE] = Field(default=0.0, ge=0)
    first_steps: int = Field(default=500, ge=1)
    """Steps of round 0, on the labelled set alone."""
    round_steps: int = Field(default=600, ge=1)
    """Steps of every later round."""
    init: Literal["base", "previous"] = "base"
    """Start of a round's adapters: the base, or the previous round's adapters."""
    batch_size: int = Field(default=48, ge=1)
    """Rows of a step, over all workers of the task."""
    micro_batch_rows: Annotated[int | None, Mark.FREE] = Field(default=None, ge=1)
    """Most rows that a worker sends through the model at a time, their gradients added up: less
    memory, the same step. None = all of its rows at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: matrix products in bfloat16 (autocast) and frozen weights kept in it; trained
    weights and their optimizer state stay float32."""
    gradient_checkpointing: Annotated[bool, Mark.FREE] = False
    """Keep only each layer's input and compute the rest again for the gradients: for LoRA half as
    much compute again, for a tenth of the activations."""
    labelled_fraction: float = Field(default=0.25, ge=0, le=1)
    """Share of every batch that comes from the labelled set."""
    learning_rate: float = Field(default=4e-3, gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    recognition_weight: float = Field(default=0.0, ge=0, le=1)
    """Share of the FDP loss that is weighted by the paper's recognition weights (normalised to
    mean 1 per frame); the rest is uniform. 1 = the paper's loss."""
    action_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the FDP's rows that are trained without their action: what guidance, of evaluation
    and serving, goes away from."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the labelled clips that training leaves out, the same ones every round, and accepted
    labels of these clips with them: a fit ends where its loss on them has not fallen for long, and
    keeps the weights of the lowest one. 0 = all steps on all labels."""
    checkpoint_every: Annotated[int, Mark.FREE] = Field(default=200, ge=1)
    """Steps between checkpoints that a killed training resumes from."""
    lora: LoraConfig = LoraConfig()
    idm: TaskTraining = TaskTraining()
    fdp: TaskTraining = TaskTraining()

    def of(self, task: Literal["idm", "fdp", "joint"]) -> "TrainConfig":
        """The settings of a task: its own values over the common ones."""
        own = {"idm": self.idm, "fdp": self.fdp}.get(task, TaskTraining())
        overrides = {name: value for name, value in own if value is not None}
        return self.model_copy(update={**overrides, "idm": TaskTraining(), "fdp": TaskTraining()})

    @model_validator(mode="after")
    def _validated_whole(self) -> "TrainConfig":
        if self.validation_fraction and self.strategy != "ddp":
            raise ValueError("validation_fraction needs strategy ddp: it keeps whole weights")
        return self

    @model_validator(mode="after")
    def _deepspeed_in_sequence(self) -> "TrainConfig":
        if self.strategy.startswith("deepspeed") and self.schedule == "together":
            raise ValueError(
                f"strategy {self.strategy} takes all workers for one adapter: set schedule to auto"
            )
        return self


class EvaluateConfig(Strict):
    """Evaluation on the held-out pairs."""

    best_of: tuple[int, ...] = (1, 2, 4, 8)
    num_best_of_items: int = Field(default=400, ge=1)
    """Held-out pairs used for the best-of-N curve (the first ones)."""
    temperature: float = Field(default=1.0, gt=0)
    guidance: float = Field(default=1.0, ge=0)
    """Weight of the action in frames that are drawn (classifier-free guidance); 1 = none."""
    batch_size: Annotated[int, Mark.FREE] = Field(default=250, ge=1)
    num_actors: Annotated[int, Mark.FREE] = Field(default=2, ge=1)


class GuardConfig(Strict):
    """Limits of the guards (`dynamics.evaluation.guards`): a round within them is promoted.

    A promoted round is built upon and served.

    Chosen so that healthy rounds stay far inside; docs/DESIGN.md has how often each guard blocks a
    healthy round, and a sick one.
    """

    max_copy_rate: float = Field(default=0.5, ge=0, le=1)
    """Share of held-out pairs on which the greedy frame is the source. Healthy rounds have 0 to
    2 %, an early prototype had up to 19 %, a model that only copies has 100 %."""
    min_action_sensitivity: float = Field(default=0.65, ge=0, le=1)
    """Share of the labelled set's other sentences that the true one beats at predicting the true
    frame; 0.5 for an FDP that ignores its sentence."""
    max_calibration_error: float = Field(default=0.5, ge=0, le=1)
    """Calibration error of the IDM's confidence on held-out pairs; an IDM that knows few labels by
    heart is 99 % sure and wrong."""
    min_entropy_ratio: float = Field(default=0.7, ge=0)
    """Entropy of the labels' meanings over that of the labelled set's, from equally many sentences;
    0.99 and more in healthy rounds."""
    max_common_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the labels that have the most common meaning; about 0.01 in healthy rounds."""
    max_type_skew: float = Field(default=0.35, ge=0, le=1)
    """Total variation distance between the accepted labels' mix of action types and that of all
    labels; at most the share that is dropped, so the default filter cannot reach the limit. The
    better half by the IDM's own likelihood has up to 0.27 in round 1, half of the types dropped
    0.5."""
    max_calibration_drift: float = Field(default=0.1, ge=0, le=1)
    """Calibration error of the IDM's confidence on held-out pairs, minus that of round 0; up to
    0.05 in healthy rounds."""
    max_leaked_pairs: int = Field(default=10, ge=0)
    """Held-out pairs that look like a pair of the pool: by chance 1 to 5 of the default's 1,000
    show a scene and an action that its pool shows, too. A clip that the pool holds byte for byte is
    never allowed."""
    accept: Annotated[tuple[GuardName, ...], Mark.FREE] = ()
    """Guards whose verdict is overridden, and recorded (``--accept-guard``)."""


class ServeConfig(Strict):
    """The verifier-guided generator behind HTTP."""

    enabled: bool = True
    each_round: bool = False
    host: str = "127.0.0.1"
    """Anything but a loopback address needs an API key."""
    port: int = Field(default=8000, ge=1, le=65535)
    api_key_env: str | None = None
    """Name of the environment variable, where the service runs, that holds the API key."""
    api_key_file: LocalPath | None = None
    """File with the API key, on every node that answers HTTP; the variable goes before it."""
    verifier: VerifierName = "noisy_channel"
    """Verifier for best of N when a request names none."""
    num_samples: int = Field(default=8, ge=1, le=16)
    """Candidates when a request names no number."""
    guidance: float = Field(default=1.0, ge=0)
    """As in ``evaluate``."""
    ingress_replicas: int = Field(default=0, ge=0)
    """Processes that speak HTTP and hold no model. 0 = every replica does both: one hop less, but
    nobody is left to go on with a roll-out when a replica dies; take 1 or more with several."""
    num_replicas: int = Field(default=1, ge=1)
    """Replicas with the generator; each has a queue of its own."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Replicas are added up to so many while requests wait; none = always ``num_replicas``."""
    verifier_replicas: int = Field(default=0, ge=0)
    """Replicas of the verifier; 0 = the generator's process holds both adapters."""
    num_cpus_per_replica: float = Field(default=0.5, ge=0)
    num_gpus_per_replica: float = Field(default=0.0, ge=0)
    num_gpus_per_verifier: float = Field(default=0.0, ge=0)
    batch_rows: int = Field(default=128, ge=1, le=512)
    """Most candidate frames that go through the model together."""
    max_queued: int = Field(default=64, ge=1)
    """Most requests that an HTTP replica holds; the rest is refused with 503 and Retry-After."""
    deadline_s: float = Field(default=30.0, gt=0)
    """A request that takes longer is given up."""

    @model_validator(mode="after")
    def _replicas_in_order(self) -> "ServeConfig":
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError("max_replicas must not be below num_replicas")
        return self


class TrackConfig(Strict):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; none = that of ``MLFLOW_TRACKING_URI``, without it sqlite in the run folder."""
    experiment: str = "dynamics-bootstrap"

    @property
    def server(self) -> str | None:
        """URI of the tracking server, of the config or the environment; None = the run folder."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI")


class ClusterConfig(Strict):
    """The local Ray that is started when no cluster is joined."""

    num_cpus: int = Field(default=8, ge=2)
    """Logical CPUs; more than cores, since a small box otherwise deadlocks on fractions."""
    object_store_mb: int = Field(default=200, ge=75)


class LoopConfig(Strict):
    """All settings of a run."""

    name: Annotated[str, Mark.FREE] = Field(default="tabletop", pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(default=0, ge=0)
    rounds: Annotated[int, Mark.FREE] = Field(default=3, ge=1)
    run_dir: Annotated[ConfigPlace, Mark.FREE] = Path("runs/tabletop")
    domain: DomainName | None = None
    """Knowledge about sentences and frames (`dynamics.core.domain`); none = tabletop where the
    labelled set is filmed, else open_video."""
    world: WorldConfig = WorldConfig()
    pool: PoolConfig = PoolConfig()
    labelled: LabelledConfig = LabelledConfig()
    model: ModelConfig = ModelConfig()
    pretrain: Annotated[PretrainConfig, Mark.FREE] = PretrainConfig()
    ingest: IngestConfig = IngestConfig()
    label: LabelConfig = LabelConfig()
    filter: FilterConfig = Field(default_factory=FilterConfig)
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    guards: GuardConfig = GuardConfig()
    serve: Annotated[ServeConfig, Mark.FREE] = ServeConfig()
    track: Annotated[TrackConfig, Mark.FREE] = TrackConfig()
    cluster: Annotated[ClusterConfig, Mark.FREE] = ClusterConfig()

    @model_validator(mode="after")
    def _candidates_are_scored(self) -> "LoopConfig":
        if self.label.candidates > 1:
            scores = entries("dynamics.labelling.confidence:SCORES")
            by_fdp = [name for name, score in scores.items() if score.needs == "fdp_loglik"]
            if self.filter.score not in by_fdp:
                raise ValueError(
                    f"label.candidates above 1 needs filter.score to be {' or '.join(by_fdp)}"
                )
        return self

    @model_validator(mode="after")
    def _guidance_is_trained(self) -> "LoopConfig":
        if not self.train.action_dropout and {self.evaluate.guidance, self.serve.guidance} != {1.0}:
            raise ValueError(
                "guidance other than 1 needs train.action_dropout above 0: the model has to learn "
                "what follows without an action"
            )
        return self

    @model_validator(mode="after")
    def _real_labelled_set_has_a_real_pool(self) -> "LoopConfig":
        if self.labelled.dataset is not None and self.pool.path is None:
            raise ValueError(
                "labelled.dataset needs pool.path: filmed videos are no pool for real pictures"
            )
        return self

    def base_path(self) -> Place:
        """Absolute folder of the base checkpoint."""
        base = self.model.base
        if not isinstance(base, Path):
            return base
        shipped = not INSTALLED or base.parts[:2] == ("dynamics", "assets")
        return (REPOSITORY_ROOT if shipped else Path.cwd()) / base

    def deciding(self) -> dict[str, Any]:
        """Dotted keys that decide a run's results, and their values; a path is "given" or None."""
        return dict(_deciding(self, ""))

    def chosen(self) -> dict[str, Any]:
        """The deciding keys that differ from this version's defaults."""
        defaults = LoopConfig().deciding()
        return {
            key: value
            for key, value in self.deciding().items()
            if key not in defaults or value != defaults[key]
        }

    def digest(self) -> str:
        """sha256 over `chosen`; a run keeps the digest of its start (`RunFolder.digest`)."""
        return hashlib.sha256(json.dumps(self.chosen(), sort_keys=True).encode()).hexdigest()


def _deciding(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in type(section).model_fields.items():
        key, value = f"{prefix}{name}", getattr(section, name)
        if Mark.FREE in field.metadata:
            continue
        if Mark.CONTENT in field.metadata:
            yield key, None if value is None else "given"
        elif isinstance(value, BaseModel):
            yield from _deciding(value, f"{key}.")
        elif isinstance(value, tuple) and any(isinstance(part, BaseModel) for part in value):
            for number, part in enumerate(value):
                yield from _deciding(part, f"{key}.{number}.")
        else:
            yield key, value
