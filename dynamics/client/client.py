"""A typed client of the HTTP service (`dynamics.serving.schemas`).

    with Client("http://127.0.0.1:8000") as client:
        for step in client.rollout("table.png", ["push the red ring up", "remove the red ring"]):
            step.image.save(f"step-{step.index}.png")

Pictures go in as files, encoded bytes, PIL pictures or uint8 arrays [H, W, 3], and come back as RGB
PIL pictures at the model's size. Log-probabilities and scores are natural logs, in nats.
"""

import base64
import binascii
import contextlib
import email.utils
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar, Unpack

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError

from dynamics.client.sse import Event, read_events
from dynamics.core.config import VerifierName
from dynamics.core.errors import UserError
from dynamics.core.images import (
    PictureError,
    encode_png,
    picture_bytes,
    read_picture,
    to_rgb,
)
from dynamics.core.loopback import by_proxy
from dynamics.serving import schemas as api

Picture = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""Path, encoded bytes (`dynamics.core.images.FORMATS`), PIL picture, or uint8 [H, W, 3]."""

BUSY = (429, 503)
MAX_WAIT_S = 30.0
"""Longest pause before a busy service is asked again, whatever its Retry-After."""

MessageT = TypeVar("MessageT", bound=BaseModel)


class Sampling(TypedDict, total=False):
    """Options of predictions and roll-outs, with the meaning and defaults of `api.Sampling`."""

    n: int | None
    temperature: float
    seed: int
    verifier: VerifierName | None
    round: int | None
    candidates: bool


class RefusedError(UserError):
    """The service refused the request."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status, e.g. 422 for what the model cannot read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A frame that the verifier chose among N."""

    image: Image.Image
    """RGB, frame_px square."""
    chosen: int
    """Index of the frame among the N candidates."""
    scores: tuple[float, ...]
    """Verifier score of each candidate in nats, higher is better."""
    candidates: tuple[Image.Image, ...] | None
    """Frames of all N candidates, where the request asked for them."""
    matches_ground_truth: bool | None
    """True when the domain's rules give exactly this frame; None when they do not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(Chosen):
    """The next frame, and which models drew it."""

    source: Image.Image
    """The given picture as the model saw it."""
    round: int
    idm: str
    """sha256 of base and IDM adapter."""
    fdp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Chosen):
    """One action of a roll-out."""

    index: int
    """0-based."""
    action: str
    total: float
    """Scores summed along the prefix, in nats."""
    num_prefixes: int
    """Prefixes that the beam holds after this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The best prefix after the last step; with a beam it may differ from the steps'."""

    frames: tuple[Image.Image, ...]
    """Frames, one an action."""
    total: float
    matches_ground_truth: bool | None
    """True when the last frame shows where the actions lead; None when that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture to begin with."""

    name: str
    image: Image.Image
    actions: tuple[str, ...]
    """Action sentences that make sense on it."""


class Rollout(Iterator[Step]):
    """The steps of a roll-out, each as soon as the service has it.

    ``source``, ``round``, ``idm``, ``fdp`` and ``num_steps`` are known from the beginning, ``end``
    after the last step. Leaving its ``with`` block early also ends the work on the server. A stream
    that breaks off is asked for again, and goes on after the last event that arrived.
    """

    def __init__(self, ask: Callable[..., httpx.Response], where: str, max_retries: int) -> None:
        self._ask = ask  # sends the request, with fields in place of its own
        self._where = where
        self._retries = max_retries
        self._seen = 0
        self._open()
        first = self._next_event()
        if first.name != "start":
            raise self._broken(f"begins with {first.name!r} instead of 'start'")
        start = _parse(api.RolloutStart, first.data, where)
        self.source = decode_image(start.source)
        """The given picture as the model saw it."""
        self.num_steps = start.num_steps
        self.round = start.round
        self.idm = start.idm
        self.fdp = start.fdp
        self.end: End | None = None

    def __next__(self) -> Step:
        """Wait for the next step.

        Raises:
            UserError: the service gave up, or the connection broke before the last step.
        """
        if self.end is not None:
            raise StopIteration
        event = self._next_event()
        if event.name == "step":
            return to_step(_parse(api.RolloutStepMessage, event.data, self._where))
        if event.name != "end":
            raise self._broken(f"holds an unknown event {event.name!r}")
        self.end = to_end(_parse(api.RolloutEnd, event.data, self._where))
        self.close()
        raise StopIteration

    def finish(self) -> End:
        """Wait for all steps that are left; the best path after the last one."""
        for _ in self:
            pass
        assert self.end is not None  # else the loop has raised
        return self.end

    def close(self) -> None:
        """Stop listening; the server then stops working on it."""
        self._retries = 0
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, **fields: Any) -> None:
        self._response = self._ask(**fields)
        self._events = read_events(self._response.iter_bytes())
        self._position = 0

    def _next_event(self) -> Event:
        while True:
            event = self._read()
            if event is None:
                self._retries -= 1
                # In the round of its first event, also over a promotion: seeds do the rest.
                self._open(**({"round": self.round} if self._seen else {}))
                continue
            self._position += 1
            if self._position > self._seen:
                self._seen = self._position
                return event

    def _read(self) -> Event | None:
        """The next event; None when the stream broke off and may be asked for again."""
        try:
            event = next(self._events, None)
            problem = "ended before its last step; the service may have been restarted"
        except httpx.TimeoutException as error:
            self.close()
            raise self._broken("stood still for too long; ask with a larger timeout_s") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            event, problem = None, f"broke off: {_line(error)}"
        if event is None:
            self._response.close()
            if self._retries:
                return None
            raise self._broken(problem)
        if event.name == "error":
            self.close()
            raise UserError(_parse(api.ErrorReply, event.data, self._where).detail)
        return event

    def _broken(self, how: str) -> UserError:
        return UserError(f"the roll-out from {self._where} {how}")


class Client:
    """Client of one service. Threads that iterate over roll-outs need one each."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 3,
    ) -> None:
        """Configure the client; nothing is sent.

        Args:
            url: address of the service, as ``dynamics serve`` prints it.
            api_key: sent as ``Authorization: Bearer``, where the service wants one.
            timeout_s: the longest silence of the service, not the length of a whole roll-out.
            max_retries: most repeats to a busy service, after the pause that it names.
                Repeating is safe, since equal requests with equal seeds get equal answers.

        Raises:
            UserError: not an address.
        """
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=timeout_s,
                trust_env=by_proxy(self.url),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise UserError(f"{url!r} or its API key cannot be used: {_line(error)}") from error

    def predict(self, image: Picture, action: str, **sampling: Unpack[Sampling]) -> Prediction:
        """The next frame after one action: the best of ``n`` candidates.

        Raises:
            RefusedError: the picture or the action cannot be used, or the key is wrong.
            UserError: no answer.
        """
        body = _without_none(image=encode_image(image), action=action, **sampling)
        return to_prediction(self._ask(api.PredictReply, "POST", "/v1/predict", body))

    def rollout(
        self,
        image: Picture,
        actions: Sequence[str],
        *,
        beam: int = 1,
        **sampling: Unpack[Sampling],
    ) -> Rollout:
        """Several actions in a row; an iterator of steps that arrive as they are drawn.

        Raises:
            RefusedError: the picture or an action cannot be used, or the key is wrong.
            UserError: no answer.
        """
        body = _without_none(
            image=encode_image(image), actions=list(actions), beam=beam, **sampling
        )

        def ask(**fields: Any) -> httpx.Response:
            return self._send("POST", "/v1/rollouts", body | fields)

        return Rollout(ask, self.url, self._max_retries)

    def label(self, before: Picture, after: Picture, *, round: int | None = None) -> api.LabelReply:
        """The action that the IDM sees between two pictures."""
        body = _without_none(before=encode_image(before), after=encode_image(after), round=round)
        return self._ask(api.LabelReply, "POST", "/v1/label", body)

    def score(
        self,
        image: Picture,
        action: str,
        candidates: Sequence[Picture],
        *,
        verifier: VerifierName | None = None,
        round: int | None = None,
    ) -> api.ScoreReply:
        """How good pictures of any origin are as the next frame: a reward for any generator.

        Raises:
            RefusedError: a picture or the action cannot be used, or the key is wrong.
            UserError: no answer.
        """
        body = _without_none(
            image=encode_image(image),
            action=action,
            candidates=[encode_image(one) for one in candidates],
            verifier=verifier,
            round=round,
        )
        return self._ask(api.ScoreReply, "POST", "/v1/score", body)

    def models(self) -> api.ModelsReply:
        """The rounds and verifiers that can be asked, and the limits."""
        return self._ask(api.ModelsReply, "GET", "/v1/models")

    def scenes(self) -> tuple[Scene, ...]:
        """Example scenes; empty where the run's domain has none."""
        return tuple(
            Scene(name=scene.name, image=decode_image(scene.image), actions=tuple(scene.actions))
            for scene in self._ask(api.ScenesReply, "GET", "/v1/scenes").scenes
        )

    def ready(self) -> bool:
        """True when the service has loaded its models; False also when nothing answers."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self,
        reply: type[MessageT],
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
    ) -> MessageT:
        response = self._send(method, path, body)
        try:
            content = response.read()
        except httpx.HTTPError as error:
            raise self._no_answer(error) from error
        finally:
            response.close()
        return _parse(reply, content, self.url)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """An open, successful response; a busy service is asked again."""
        for attempt in range(self._max_retries + 1):
            request = self._http.build_request(method, path, json=body)
            try:
                response = self._http.send(request, stream=True)
                if response.is_success:
                    return response
                response.read()
            except (httpx.HTTPError, httpx.StreamError) as error:
                raise self._no_answer(error) from error
            if response.status_code not in BUSY or attempt == self._max_retries:
                break
            time.sleep(pause_s(response.headers.get("retry-after"), attempt))
        raise RefusedError(self._why(response), response.status_code)

    def _why(self, response: httpx.Response) -> str:
        try:
            detail = api.ErrorReply.model_validate_json(response.content).detail
        except ValidationError:  # the answer of a proxy, for example
            detail = response.reason_phrase or "no reason given"
        prefix = f"{self.url} refused ({response.status_code}): {_line(detail)}"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return f"{prefix}; give its key: Client(url, api_key=...)"
        if response.status_code in BUSY:
            return f"{prefix}; asked {self._max_retries + 1} times, try again later"
        return prefix

    def _no_answer(self, error: Exception) -> UserError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            how = f"no service answers at {self.url}; start one with dynamics serve RUN"
        elif isinstance(error, httpx.TimeoutException):
            how = f"{self.url} was silent for {self._timeout_s:g} s; ask with a larger timeout_s"
        elif isinstance(error, httpx.UnsupportedProtocol):
            how = f"{self.url} is not an address; it must begin with http:// or https://"
        else:
            how = f"{self.url} gave no answer: {_line(error)}"
        return UserError(how)


def encode_image(picture: Picture) -> str:
    """Base64 for a request; pixels become a PNG, encoded bytes stay as they are.

    Raises:
        UserError: no such file, not uint8 [H, W, 3], or more bytes than the service takes.
    """
    if isinstance(picture, Image.Image | np.ndarray):
        content = encode_png(open_image(picture))
    else:
        content = picture_bytes(_source(picture))
    if len(content) > api.MAX_IMAGE_BYTES:
        raise UserError(
            f"the picture has {len(content):,} bytes, the service takes {api.MAX_IMAGE_BYTES:,}; "
            "scale it down, the model sees a small square of it anyway"
        )
    return base64.b64encode(content).decode()


def open_image(picture: Picture) -> Image.Image:
    """The picture's pixels, RGB.

    Raises:
        UserError: no such file, no picture, or not uint8 [H, W, 3].
    """
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(
                f"a picture must be uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}"
            )
        return Image.fromarray(picture)
    return read_picture(_source(picture))


def _source(picture: str | Path | bytes) -> bytes | Path:
    return picture if isinstance(picture, bytes) else Path(picture)


def decode_image(text: str) -> Image.Image:
    """RGB picture of a reply's base64.

    Raises:
        UserError: it is no picture.
    """
    try:
        return read_picture(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, PictureError) as error:
        raise UserError("the service answered with a picture that cannot be read") from error


def pause_s(retry_after: str | None, attempt: int) -> float:
    """Seconds to wait before the service is asked again.

    Args:
        retry_after: the header: seconds, or an HTTP date; none = 1, 2, 4 ... seconds.
        attempt: 0-based.
    """
    wanted: float = 2**attempt
    if retry_after is not None and retry_after.isdecimal():
        wanted = float(retry_after)
    elif retry_after is not None:
        with contextlib.suppress(ValueError):  # no date either: ignored
            wanted = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    return min(max(wanted, 0.0), MAX_WAIT_S)


def to_prediction(reply: api.PredictReply) -> Prediction:
    """The reply with its pictures decoded."""
    return Prediction(
        **_chosen(reply),
        source=decode_image(reply.source),
        round=reply.round,
        idm=reply.idm,
        fdp=reply.fdp,
    )


def to_end(message: api.RolloutEnd) -> End:
    """The message with its pictures decoded."""
    frames = tuple(decode_image(frame) for frame in message.frames)
    return End(
        frames=frames, total=message.total, matches_ground_truth=message.matches_ground_truth
    )


def to_step(message: api.RolloutStepMessage) -> Step:
    """The message with its pictures decoded."""
    return Step(
        **_chosen(message),
        index=message.index,
        action=message.action,
        total=message.total,
        num_prefixes=message.num_prefixes,
    )


def _chosen(message: api.Choice) -> dict[str, Any]:
    """The fields of `Chosen`."""
    candidates = message.candidates
    return {
        "image": decode_image(message.image),
        "chosen": message.chosen,
        "scores": tuple(message.scores),
        "candidates": candidates and tuple(decode_image(one) for one in candidates),
        "matches_ground_truth": message.matches_ground_truth,
    }


def _parse(message: type[MessageT], content: str | bytes, where: str) -> MessageT:
    try:
        return message.model_validate_json(content)
    except ValidationError as error:
        raise UserError(
            f"{where} is no dynamics service, or one of another version: its answer is not a "
            f"{message.__name__}"
        ) from error


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _line(what: object) -> str:
    return " ".join(str(what).split())
