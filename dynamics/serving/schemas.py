"""The messages of the HTTP service, and the limits of what may be asked.

One file for both sides: the server validates with these types, `dynamics.client` returns them.
Pictures travel as base64; log-probabilities and scores are natural logs, in nats.
"""

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from dynamics.core.config import VerifierName

MAX_BODY_BYTES = 12 * 2**20
MAX_IMAGE_BYTES = 4 * 2**20
MAX_SAMPLES = 16
MAX_STEPS = 16
MAX_BEAM = 8
MAX_ACTION_CHARS = 512
MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps exact."""

EncodedImage = Annotated[str, Field(min_length=1, max_length=math.ceil(MAX_IMAGE_BYTES / 3) * 4)]
"""Base64 of a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or PPM file."""
ActionText = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_ACTION_CHARS)
]


class Message(BaseModel):
    """An unknown field is an error: a misspelt option must not be ignored."""

    # The sentences under the fields are their description in the service's own documentation.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Sampling(Message):
    """How candidates are drawn and judged; shared by predictions and roll-outs."""

    n: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    """Candidates a step; none = the server's own number."""
    temperature: float = Field(default=1.0, gt=0, le=4)
    """Low repeats the likeliest frame, high varies more."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """The same seed gives the same frames, alone or among other requests."""
    verifier: VerifierName | None = None
    """None = the server's own."""
    round: int | None = Field(default=None, ge=0)
    """Which round answers; none = the one that is promoted."""
    candidates: bool = False
    """Also send every candidate's picture."""


class PredictRequest(Sampling):
    """One action on one picture."""

    image: EncodedImage
    """Cropped or padded to a square and scaled by the model's own rule."""
    action: ActionText
    """A sentence, e.g. ``push the red ring left``."""


class RolloutRequest(Sampling):
    """Several actions in a row on one picture."""

    image: EncodedImage
    actions: list[ActionText] = Field(min_length=1, max_length=MAX_STEPS)
    """Sentences, carried out one after the other."""
    beam: int = Field(default=1, ge=1, le=MAX_BEAM)
    """Prefixes that are kept over the steps; 1 goes on from each step's favourite."""


class LabelRequest(Message):
    """Two pictures, one before and one after an action."""

    before: EncodedImage
    after: EncodedImage
    round: int | None = Field(default=None, ge=0)


class Provenance(Message):
    """Which models gave the answer."""

    round: int
    idm: str
    """sha256 of base and IDM adapter."""
    fdp: str
    """sha256 of base and FDP adapter."""


class Choice(Message):
    """A frame that was chosen among N."""

    image: str
    """Base64 PNG at the model's size."""
    chosen: int
    """Index of the frame among the candidates."""
    scores: list[float]
    """The verifier's, one a candidate, higher is better."""
    candidates: list[str] | None = None
    """Base64 PNG each, where they were asked for."""
    agrees: bool | None = None
    """Whether the domain's rules give exactly this frame; none = not known."""


class PredictReply(Choice, Provenance):
    """The next frame."""

    source: str
    """The given picture as the model saw it, base64 PNG."""


class RolloutStart(Provenance):
    """First event of a roll-out, named ``start``."""

    source: str
    num_steps: int


class RolloutStepMessage(Choice):
    """One event a step, named ``step``: the prefix that is best so far, and what it chose among."""

    index: int
    """0-based."""
    action: str
    total: float
    """Scores summed along the prefix."""
    num_prefixes: int
    """Prefixes that the beam holds after this step."""


class RolloutEnd(Message):
    """Last event, named ``end``: the prefix that is best after the last step.

    With a beam its frames may differ from those that the steps showed.
    """

    frames: list[str]
    """Base64 PNG, one an action."""
    total: float
    agrees: bool | None = None
    """Whether the last frame is where the actions lead; none = not known."""


class ErrorReply(Message):
    """What every refusal holds; also the event ``error``, after which a roll-out ends."""

    detail: str
    """One line: what is wrong, and the way out."""


class LabelReply(Message):
    """The action that the IDM sees between two pictures."""

    action: str
    """Empty when the model found no end to its sentence."""
    logprob: float
    """Sum over the tokens."""
    token_logprobs: list[float]
    round: int
    idm: str


class RoundInfo(Message):
    """A round that can be asked."""

    round: int
    idm: str
    fdp: str
    promoted: bool
    """Answers when no round is named."""


class ModelsReply(Message):
    """What this service can do."""

    name: str
    """The run's."""
    family: str
    frame_px: int
    rounds: list[RoundInfo]
    verifiers: list[VerifierName]
    verifier: VerifierName
    """Where a request names none."""
    num_samples: int
    """Where a request names none."""
    max_samples: int = MAX_SAMPLES
    max_steps: int = MAX_STEPS
    max_beam: int = MAX_BEAM
    max_action_chars: int = MAX_ACTION_CHARS


class Scene(Message):
    """A picture to begin with, and actions that make sense on it."""

    name: str
    image: str
    actions: list[str]


class ScenesReply(Message):
    """Scenes at hand; empty where the service knows no world."""

    scenes: list[Scene]
