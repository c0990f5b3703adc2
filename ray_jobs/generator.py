"""The Ray Serve deployment: the verifier-guided generator of one round behind HTTP.

POST /v1/predict {"image": <base64 PNG>, "action": "move the red ball left", "n": 8}
  -> {"image": <base64 PNG>, "scores": [...], "chosen": 3, "round": 3, "idm": ..., "fdp": ...}
GET /healthz
"""

import base64
import binascii
import io
import math
import threading
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynamics.config import LoopConfig
from dynamics.errors import UserError
from dynamics.generation.predict import Predictor
from dynamics.models.adapters import load_pair
from dynamics.records import ModelRef

MAX_BODY_BYTES = 12 * 2**20
MAX_IMAGE_BYTES = 8 * 2**20
MAX_PIXELS = 16_000_000
MAX_SAMPLES = 16


class PredictRequest(BaseModel):
    """One action on one picture."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1, max_length=math.ceil(MAX_IMAGE_BYTES / 3) * 4)
    """Base64 of a PNG, JPEG or WebP; cropped to its centre square and scaled to the model."""
    action: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=512)]
    n: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    """Candidates; none = serve.num_samples."""
    temperature: float = Field(default=1.0, gt=0, le=4)
    seed: int = Field(default=0, ge=0, lt=2**63)


class PredictResponse(BaseModel):
    """The chosen frame, and which models chose it."""

    image: str
    """Base64 PNG at the model's size."""
    scores: list[float]
    chosen: int
    round: int
    idm: str
    """sha256 of base and IDM adapter."""
    fdp: str


class LimitBody:
    """ASGI middleware: 413 for bodies above the limit, whether announced or streamed."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting what is received."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, f"the request is larger than {self.limit} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


def decode_image(text: str) -> Image.Image:
    """Base64 to a picture, refused before it is decoded to pixels when it is too large.

    Raises:
        HTTPException: 422 for what is no picture, 413 for too many pixels.
    """
    try:
        picture = Image.open(
            io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG", "JPEG", "WEBP")
        )
    except (binascii.Error, ValueError, UnidentifiedImageError, OSError) as error:
        raise HTTPException(422, "image must be base64 of a PNG, JPEG or WebP file") from error
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"image has more than {MAX_PIXELS} pixels") from error
    if picture.width * picture.height > MAX_PIXELS:
        raise HTTPException(413, f"image has more than {MAX_PIXELS} pixels")
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise HTTPException(422, "image is damaged") from error
    return picture


def encode_image(frame: Any) -> str:
    """uint8 [H, W, 3] to base64 PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


api = FastAPI(title="dynamics", docs_url=None, redoc_url=None)
api.add_middleware(LimitBody, limit=MAX_BODY_BYTES)


@serve.deployment(
    name="Generator",
    max_ongoing_requests=4,
    max_queued_requests=32,
    backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
    health_check_timeout_s=60,
)
@serve.ingress(api)
class Generator:
    """One replica: the base and both adapters of a round."""

    def __init__(self, cfg: LoopConfig, models: ModelRef, round_id: int) -> None:
        idm, fdp = load_pair(models, cfg.model)
        self._predictor = Predictor(idm, fdp, fdp.model.images, cfg.serve.verifier)
        self._num_samples = cfg.serve.num_samples
        self._models = models
        self._round_id = round_id
        # The adapters are switched on one model: two requests must not interleave.
        self._one_at_a_time = threading.Lock()

    @api.get("/healthz")
    def healthz(self) -> dict[str, Any]:
        """Which round answers here."""
        return {"status": "ok", "round": self._round_id}

    @api.post("/v1/predict")
    def predict(self, request: PredictRequest) -> PredictResponse:
        """Draw N next frames, return the one that the verifier likes best."""
        picture = decode_image(request.image)
        try:
            with self._one_at_a_time:
                answer = self._predictor.predict(
                    picture,
                    request.action,
                    num_samples=request.n or self._num_samples,
                    temperature=request.temperature,
                    seed=request.seed,
                )
        except UserError as error:  # e.g. an action longer than the model can read
            raise HTTPException(422, str(error)) from error
        return PredictResponse(
            image=encode_image(answer.frame),
            scores=list(answer.scores),
            chosen=answer.chosen,
            round=self._round_id,
            idm=self._models.idm_digest,
            fdp=self._models.fdp_digest,
        )
