"""A service without models: the tabletop's own rules draw; the messages are the real ones."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel

from dynamics.core.config import REPOSITORY_ROOT, WorldConfig
from dynamics.core.images import PictureError, read_picture
from dynamics.core.seeds import numpy_rng
from dynamics.inference.verifiers import descriptions
from dynamics.serving import schemas as api
from dynamics.serving.http.films import FILMS, film
from dynamics.serving.images import from_base64, to_base64
from dynamics.tabletop.language import action_words, parse, say
from dynamics.tabletop.oracle import read_scenes
from dynamics.tabletop.render import snapshot
from dynamics.tabletop.scene import Scene, all_actions, apply, sample_action, sample_scene

WORLD = WorldConfig()
PAGE = REPOSITORY_ROOT / "dynamics" / "serving" / "page"
NUM_ROUNDS = 3
LIMIT = 20.0
"""Largest error of a picture that is like the tabletop's."""


WORDS = action_words()


@dataclass
class Behaviour:
    """What a test may change while the service runs."""

    api_key: str | None = None
    busy: int = 0
    """So many requests are answered with 503 first."""
    step_s: float = 0.0
    raw: dict[str, bytes] = field(default_factory=dict)
    """Path to an event stream that is sent instead of the right one."""
    seen: list[str] = field(default_factory=list)
    """Paths asked for."""


class RefusedError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def png(scene: Scene) -> str:
    frame = snapshot([scene], WORLD, numpy_rng("fake", scene.to_text()))[0]
    return to_base64(frame)


def see(image: str) -> Scene:
    try:
        picture = read_picture(from_base64(image))
    except PictureError as error:
        raise RefusedError(422, str(error)) from error
    square = picture.resize((WORLD.frame_px, WORLD.frame_px), Image.Resampling.BOX)
    return read_scenes(np.array(square)[None], WORLD)[0]


def draw(scene: Scene, text: str, sampling: api.Sampling, step: int) -> tuple[Scene, dict]:
    """The next scene and the fields of `api.Choice`; later rounds are right more often."""
    if (action := parse(text)) is None:
        raise RefusedError(422, f"action: the model has no words for {text.split()[0]!r}")
    round_id = NUM_ROUNDS - 1 if sampling.round is None else sampling.round
    rng = numpy_rng("fake", sampling.seed, step, text, round_id, sampling.temperature)
    truth = apply(scene, action) or scene
    drawn, scores = [], []
    for _ in range(sampling.n or 8):
        right = rng.random() < 0.3 + 0.2 * round_id or not all_actions(scene)
        drawn.append(truth if right else apply(scene, sample_action(rng, scene)) or scene)
        scores.append(float(rng.normal(-1.5 if right else -9.0, 1.5 if right else 4.0)))
    chosen = int(np.argmax(scores))
    fields = {
        "image": png(drawn[chosen]),
        "chosen": chosen,
        "scores": scores,
        "candidates": [png(one) for one in drawn] if sampling.candidates else None,
        "matches_ground_truth": drawn[chosen] == truth,
    }
    return drawn[chosen], fields


def provenance(round_id: int | None) -> dict:
    number = NUM_ROUNDS - 1 if round_id is None else round_id
    if number >= NUM_ROUNDS:
        raise RefusedError(404, f"round {number} is not served; served are 0, 1, 2")
    return {"round": number, "idm": f"{number:064d}", "fdp": f"{number + 7:064d}"}


def contrast() -> api.Contrast:
    """A pair whose first round does nothing."""
    rng = numpy_rng("fake contrast")
    scene = sample_scene(rng, WORLD.grid, 3, 4)
    action = sample_action(rng, scene)
    target = png(apply(scene, action) or scene)
    return api.Contrast(
        action=say(action, rng),
        source=png(scene),
        target=target,
        drawn={0: png(scene), NUM_ROUNDS - 1: target},
        num_pairs=1000,
        num_gained=312,
        num_lost=41,
    )


def event(name: str, message: BaseModel) -> bytes:
    return f"event: {name}\ndata: {message.model_dump_json()}\n\n".encode()


def rollout(request: api.RolloutRequest, step_s: float) -> Iterator[bytes]:
    given = scene = see(request.image)
    total, frames, should_be = 0.0, [], given
    yield b": here\n\n"
    yield event(
        "start",
        api.RolloutStart(
            source=png(scene), num_steps=len(request.actions), **provenance(request.round)
        ),
    )
    for index, text in enumerate(request.actions):
        time.sleep(step_s)
        try:
            scene, fields = draw(scene, text, request, index)
        except RefusedError as error:
            yield event("error", api.ErrorReply(detail=error.detail))
            return
        total += max(fields["scores"])
        frames.append(fields["image"])
        should_be = apply(should_be, parse(text)) or should_be
        fields["matches_ground_truth"] = scene == should_be
        yield event(
            "step",
            api.RolloutStepMessage(
                index=index, action=text, total=total, num_prefixes=request.beam, **fields
            ),
        )
    yield event(
        "end", api.RolloutEnd(frames=frames, total=total, matches_ground_truth=scene == should_be)
    )


def add_scores(app: FastAPI) -> None:
    @app.post("/v1/score")
    def score(request: api.ScoreRequest) -> api.ScoreReply:
        source, drawn = see(request.image), [see(one) for one in request.candidates]
        right = [one == apply(source, parse(request.action)) for one in drawn]
        logprobs = [-0.5 if is_right else -6.0 for is_right in right]
        return api.ScoreReply(
            scores=[2 * one for one in logprobs],
            chosen=int(np.argmax(logprobs)),
            action_logprobs=logprobs,
            action_logprob_of_copy=-6.0,
            frame_logprobs=logprobs,
            is_copy=[one == source for one in drawn],
            **provenance(request.round),
        )


def add_refusals(app: FastAPI, behaviour: Behaviour) -> None:
    @app.exception_handler(RefusedError)
    def refuse(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        return JSONResponse({"detail": f"{problem['loc'][-1]}: {problem['msg']}"}, 422)

    @app.middleware("http")
    async def check(request: Request, call_next) -> Response:
        path = request.url.path
        behaviour.seen.append(path)
        if path.startswith("/v1/"):
            if behaviour.busy and path != "/v1/words":  # typing asks for these at any time
                behaviour.busy -= 1
                return JSONResponse({"detail": "all seats are taken"}, 503, {"Retry-After": "0"})
            key = behaviour.api_key
            if key and request.headers.get("authorization") != f"Bearer {key}":
                return JSONResponse({"detail": "this service needs an API key"}, 401)
            if path in behaviour.raw:
                return Response(behaviour.raw[path], media_type="text/event-stream")
        return await call_next(request)


def add_pictures(app: FastAPI) -> None:
    @app.post("/v1/look")
    def look(request: api.LookRequest) -> api.LookReply:
        picture = read_picture(from_base64(request.image))
        square = np.array(picture.resize((WORLD.frame_px, WORLD.frame_px), Image.Resampling.BOX))
        seen = snapshot([see(request.image)], WORLD, numpy_rng("fake look"))[0]
        error = float(np.abs(seen.astype(float) - square).mean())
        return api.LookReply(
            source=to_base64(square), seen=to_base64(seen), error=error, limit=LIMIT
        )

    @app.post("/v1/words")
    def words(request: api.WordsRequest) -> api.WordsReply:
        unknown = [word for word in request.action.split() if word not in WORDS]
        return api.WordsReply(
            unknown={word: get_close_matches(word, WORDS, n=1, cutoff=0)[0] for word in unknown}
        )

    @app.post("/v1/animations")
    def animations(request: api.AnimationRequest) -> Response:
        return Response(film(request), media_type=FILMS[request.kind])


def build(behaviour: Behaviour) -> FastAPI:
    app = FastAPI(title="fake", docs_url=None)
    add_refusals(app, behaviour)
    add_pictures(app)

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/v1/models")
    def models() -> api.ModelsReply:
        rounds = [
            api.RoundInfo(promoted=number == NUM_ROUNDS - 1, **provenance(number))
            for number in range(NUM_ROUNDS)
        ]
        return api.ModelsReply(
            name="tabletop",
            family="chameleon",
            frame_px=WORLD.frame_px,
            rounds=rounds,
            verifiers=descriptions(),
            verifier="noisy_channel",
            num_samples=8,
        )

    @app.get("/v1/scenes")
    def scenes() -> api.ScenesReply:
        made = []
        for number in range(8):
            rng = numpy_rng("fake scene", number)
            scene = sample_scene(rng, WORLD.grid, 3, 4)
            actions = [say(sample_action(rng, scene), rng) for _ in range(6)]
            made.append(api.Scene(name=f"table {number + 1}", image=png(scene), actions=actions))
        return api.ScenesReply(scenes=made, contrast=contrast())

    @app.post("/v1/predict")
    def predict(request: api.PredictRequest) -> api.PredictReply:
        scene = see(request.image)
        models = provenance(request.round)
        _, fields = draw(scene, request.action, request, 0)
        return api.PredictReply(source=png(scene), **fields, **models)

    @app.post("/v1/rollouts")
    def rollouts(request: api.RolloutRequest) -> StreamingResponse:
        provenance(request.round)
        see(request.image)
        return StreamingResponse(rollout(request, behaviour.step_s), media_type="text/event-stream")

    @app.post("/v1/label")
    def label(request: api.LabelRequest) -> api.LabelReply:
        before, after = see(request.before), see(request.after)
        rng = numpy_rng("fake label")
        options = (sample_action(rng, before) for _ in range(300))
        found = next((one for one in options if apply(before, one) == after), None)
        models = provenance(request.round)
        return api.LabelReply(
            action="" if found is None else say(found, rng),
            logprob=-0.4,
            token_logprobs=[-0.1, -0.3],
            round=models["round"],
            idm=models["idm"],
        )

    add_scores(app)

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/{name}")
    def asset(name: str) -> FileResponse:
        return FileResponse(PAGE / ("docs.html" if name == "docs" else name))

    return app


@contextmanager
def running(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The app on a free port of its own thread; its URL."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
