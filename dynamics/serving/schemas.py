"""The messages of the HTTP service, and the limits of what may be asked.

One file for both sides: the server validates with these types, `dynamics.client` returns them.
Pictures travel as base64; log-probabilities and scores are natural logs, in nats.
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from dynamics.core.config import VerifierName

MAX_BODY_BYTES = 12 * 2**20
MAX_IMAGE_BYTES = 4 * 2**20
MAX_SAMPLES = 16
MAX_STEPS = 16
MAX_BEAM = 8
MAX_ACTION_CHARS = 512
MAX_FILM_PX = 1024
MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps exact."""

EncodedImage = Annotated[str, Field(min_length=1, max_length=math.ceil(MAX_IMAGE_BYTES / 3) * 4)]
"""Base64 of a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or PPM file."""
ActionText = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_ACTION_CHARS)
]


class Message(BaseModel):
    """Base of all messages. An unknown field is an error, so that no misspelt option is ignored."""

    # The sentences under the fields are their description in the service's own documentation.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Sampling(Message):
    """Options of best-of-N sampling, shared by predictions and roll-outs."""

    n: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    """Number of candidate frames a step. Default: ``num_samples`` of ``/v1/models``."""
    temperature: float = Field(default=1.0, gt=0, le=4)
    """Sampling temperature: near 0 the likeliest frame, higher values more variety."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Random seed. Equal requests with equal seeds get equal frames, whatever else runs."""
    verifier: VerifierName | None = None
    """Name of the score that chooses among the candidates. Default: ``verifier`` of
    ``/v1/models``."""
    round: int | None = Field(default=None, ge=0)
    """Number of the training round whose models answer. Default: the promoted one."""
    candidates: bool = False
    """Whether the reply also holds the picture of every candidate."""


class PredictRequest(Sampling):
    """A picture and an action, whose next frame is asked for."""

    image: EncodedImage
    """The picture before the action. It is cropped or padded to a square and scaled, as the model
    needs it."""
    action: ActionText
    """The action as a sentence, e.g. ``push the red ring left``."""


class RolloutRequest(Sampling):
    """A picture and several actions, to be carried out one after the other."""

    image: EncodedImage
    """The picture before the first action."""
    actions: list[ActionText] = Field(min_length=1, max_length=MAX_STEPS)
    """The actions as sentences, in order."""
    beam: int = Field(default=1, ge=1, le=MAX_BEAM)
    """Beam width: how many sequences of frames are kept after each step. 1 keeps the best one."""


class LabelRequest(Message):
    """Two pictures, between which an action is asked for."""

    before: EncodedImage
    """The picture before the action."""
    after: EncodedImage
    """The picture after the action."""
    round: int | None = Field(default=None, ge=0)
    """Number of the training round whose IDM answers. Default: the promoted one."""


class ScoreRequest(Message):
    """Pictures that anybody's model made of an action, to be scored by the verifier."""

    image: EncodedImage
    """The picture before the action."""
    action: ActionText
    """The action as a sentence."""
    candidates: list[EncodedImage] = Field(min_length=1, max_length=MAX_SAMPLES)
    """The pictures that are to show what follows."""
    verifier: VerifierName | None = None
    """Name of the score. Default: ``verifier`` of ``/v1/models``."""
    round: int | None = Field(default=None, ge=0)
    """Number of the training round whose models answer. Default: the promoted one."""


class LookRequest(Message):
    """A picture, of which the reply shows what the model sees."""

    image: EncodedImage
    """The picture."""
    round: int | None = Field(default=None, ge=0)
    """Number of the training round whose model looks. Default: the promoted one."""


class WordsRequest(Message):
    """An action, of whose words the reply names those that the model does not know."""

    action: ActionText
    """The action as a sentence."""
    round: int | None = Field(default=None, ge=0)
    """Number of the training round whose model reads. Default: the promoted one."""


class AnimationRequest(Message):
    """Frames that become a film."""

    frames: list[EncodedImage] = Field(min_length=1, max_length=MAX_STEPS + 1)
    """Pictures of one size, at most 1,024 pixels a side, in order."""
    kind: Literal["gif", "mp4"] = "gif"
    """Format of the film; a GIF begins anew at its end."""
    seconds: float = Field(default=1.0, ge=0.1, le=5)
    """Time that each frame stays."""


class Provenance(Message):
    """The models that gave a reply."""

    round: int
    """Number of their training round."""
    idm: str
    """sha256 over the base checkpoint and the IDM adapter."""
    fdp: str
    """sha256 over the base checkpoint and the FDP adapter."""


class Choice(Message):
    """The best of N candidate frames."""

    image: str
    """The chosen frame: base64 of a PNG, as large as the model draws it."""
    chosen: int
    """Index of the chosen frame among the candidates, from 0."""
    scores: list[float]
    """Verifier score of each candidate, in nats; the highest one is chosen."""
    candidates: list[str] | None = None
    """All candidate frames as base64 PNG, if the request asked for them."""
    matches_ground_truth: bool | None = None
    """Whether the frame shows what the domain's rules give. Null: the rules do not know."""


class PredictReply(Choice, Provenance):
    """The next frame after one action."""

    source: str
    """The picture of the request as the model saw it: base64 of a PNG."""


class ScoreReply(Provenance):
    """How good each candidate is, as a reward or to choose by; all numbers in nats."""

    scores: list[float]
    """The verifier's score of each candidate, higher is better."""
    chosen: int
    """Index of the candidate with the highest score, from 0."""
    action_logprobs: list[float]
    """IDM: log-probability of the action between the picture and each candidate."""
    action_logprob_of_copy: float
    """The same with the picture itself as candidate: what a frame without any change gets."""
    frame_logprobs: list[float]
    """FDP: log-probability of each candidate's image codes after the action."""
    is_copy: list[bool]
    """Whether the candidate has the image codes of the picture: the model sees no change."""


class RolloutStart(Provenance):
    """First event of a roll-out, named ``start``."""

    source: str
    """The picture of the request as the model saw it: base64 of a PNG."""
    num_steps: int
    """Number of actions."""


class RolloutStepMessage(Choice):
    """Event after each action, named ``step``: the last frame of the best sequence so far."""

    index: int
    """Number of the step, from 0."""
    action: str
    """The action of this step."""
    total: float
    """Sum of the scores along the best sequence, in nats."""
    num_prefixes: int
    """Number of sequences that the beam keeps after this step."""


class RolloutEnd(Message):
    """Last event, named ``end``: the best sequence after the last action.

    If ``beam`` is above 1, its frames may differ from those of the ``step`` events.
    """

    frames: list[str]
    """One frame an action: base64 of a PNG each."""
    total: float
    """Sum of the scores along the sequence, in nats."""
    matches_ground_truth: bool | None = None
    """Whether the last frame shows where the actions lead. Null: the domain's rules do not know."""


class ErrorReply(Message):
    """An error: the body of a reply with status 4xx or 5xx, or the event that ends a roll-out.

    The event is named ``error``.
    """

    detail: str
    """What is wrong and what to do, in one line."""


class LabelReply(Message):
    """The action between two pictures, by the IDM."""

    action: str
    """The action as a sentence. Empty if the model did not end its sentence in time."""
    logprob: float
    """Log-probability of the sentence: the sum of ``token_logprobs``, in nats."""
    token_logprobs: list[float]
    """Log-probability of each token of the sentence, in nats."""
    round: int
    """Number of the training round of the IDM."""
    idm: str
    """sha256 over the base checkpoint and the IDM adapter."""


class LookReply(Message):
    """A picture as the model sees it."""

    source: str
    """The picture as a square of the model's size: base64 of a PNG. Sent in place of the picture
    it gives the same answers."""
    seen: str
    """What the model's image codes keep of it: base64 of a PNG."""
    error: float
    """Mean absolute difference of the two, 0 to 255."""
    limit: float | None
    """Largest error among held-out frames of the run; a picture above it is unlike what the model
    was trained on. Null: no such frame is at hand."""


class WordsReply(Message):
    """Words of an action that the model does not know."""

    unknown: dict[str, str]
    """Word to the nearest word that the model knows; empty when it knows all. A model that writes
    words in pieces knows all."""


class RoundInfo(Message):
    """A training round whose models can be asked."""

    round: int
    """Number of the round, from 0."""
    idm: str
    """sha256 over the base checkpoint and the IDM adapter."""
    fdp: str
    """sha256 over the base checkpoint and the FDP adapter."""
    promoted: bool
    """Whether this round answers requests that name none."""


class ModelsReply(Message):
    """Models, defaults and limits of this service."""

    name: str
    """Name of the run that is served."""
    family: str
    """Model family, e.g. ``chameleon``."""
    frame_px: int
    """Side of the square frames, in pixels."""
    rounds: list[RoundInfo]
    """The rounds that can be asked, the oldest first."""
    verifiers: dict[str, str]
    """Scores that can choose among candidates: name to label and description."""
    verifier: str
    """Verifier for best-of-N when the request names none."""
    num_samples: int
    """Number of candidates when the request names none."""
    max_samples: int = MAX_SAMPLES
    """Largest ``n``."""
    max_steps: int = MAX_STEPS
    """Most actions of a roll-out."""
    max_beam: int = MAX_BEAM
    """Largest ``beam``."""
    max_action_chars: int = MAX_ACTION_CHARS
    """Longest action, in characters."""


class Scene(Message):
    """An example: a picture to begin with, and actions that make sense on it."""

    name: str
    """Title of the example."""
    image: str
    """The picture: base64 of a PNG."""
    actions: list[str]
    """Actions that can be carried out one after the other."""


class Contrast(Message):
    """A held-out pair that the first round draws wrong and the promoted one right.

    It is chosen for that; the counts say of how many pairs that holds, and of how many the reverse.
    """

    action: str
    """The action."""
    source: str
    """The frame before it: base64 of a PNG, as all pictures here."""
    target: str
    """The true frame after it."""
    drawn: dict[int, str]
    """By round the greedy frame: first round, then promoted round."""
    num_pairs: int
    """Held-out pairs that both rounds were judged on."""
    num_gained: int
    """Pairs that the first round draws wrong and the promoted one right."""
    num_lost: int
    """Pairs that the first round draws right and the promoted one wrong."""


class ScenesReply(Message):
    """Examples to begin with."""

    scenes: list[Scene]
    """The domain's own; on real video frames of held-out pairs; empty where there are none."""
    contrast: Contrast | None = None
    """What the rounds have changed. Null: one round, or no pair whose truth is known."""
