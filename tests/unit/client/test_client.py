"""The client over real HTTP; the service behind it draws by the tabletop's rules."""

import io
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate

import numpy as np
import pytest
from PIL import Image

from dynamics.client.client import Client, RefusedError, encode_image, pause_s
from dynamics.core.errors import UserError
from dynamics.serving import schemas as api
from tests.fake_service import WORLD, Behaviour, build, running


@pytest.fixture(scope="module")
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture(scope="module")
def url(behaviour: Behaviour) -> Iterator[str]:
    with running(build(behaviour)) as address:
        yield address


@pytest.fixture
def client(url: str, behaviour: Behaviour) -> Iterator[Client]:
    vars(behaviour).update(vars(Behaviour()))
    with Client(url, timeout_s=20) as one:
        yield one


def test_a_prediction_has_the_frame_and_what_it_was_chosen_from(client):
    scene = client.scenes()[0]
    reply = client.predict(scene.image, scene.actions[0], n=5, seed=3, candidates=True)
    assert reply.image.size == reply.source.size == (WORLD.frame_px, WORLD.frame_px)
    assert len(reply.scores) == len(reply.candidates) == 5
    assert reply.scores[reply.chosen] == max(reply.scores)
    assert reply.candidates[reply.chosen].tobytes() == reply.image.tobytes()
    assert (reply.round, reply.matches_ground_truth) == (2, True)
    assert client.predict(scene.image, scene.actions[0]).candidates is None


def test_no_proxy_stands_before_this_machine(url, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(url, timeout_s=20) as one:
        assert one.scenes()


def test_every_kind_of_picture_gives_the_same_answer(client, tmp_path):
    scene = client.scenes()[1]
    path = tmp_path / "table.png"
    scene.image.save(path)
    pictures = [scene.image, np.array(scene.image), path, str(path), path.read_bytes()]
    frames = {client.predict(one, scene.actions[0]).image.tobytes() for one in pictures}
    assert len(frames) == 1


def test_steps_arrive_while_the_service_still_works(client, behaviour):
    scene = client.scenes()[0]
    behaviour.step_s = 0.3
    begun = time.monotonic()
    with client.rollout(scene.image, scene.actions[:3], n=2, beam=2) as rollout:
        assert (rollout.num_steps, rollout.round, rollout.end) == (3, 2, None)
        assert rollout.source.size == (WORLD.frame_px, WORLD.frame_px)
        first = next(rollout)
        assert time.monotonic() - begun < 0.75
        steps = [first, *rollout]
    assert [step.action for step in steps] == list(scene.actions[:3])
    assert [step.index for step in steps] == [0, 1, 2]
    assert rollout.end is not None
    assert rollout.end.total == steps[-1].total
    assert [f.tobytes() for f in rollout.end.frames] == [s.image.tobytes() for s in steps]
    assert next(rollout, None) is None


def test_a_rollout_can_be_left_early(client, behaviour):
    scene = client.scenes()[0]
    behaviour.step_s = 0.2
    with client.rollout(scene.image, scene.actions) as rollout:
        next(rollout)
    with pytest.raises(UserError, match=r"broke off|ended before"):
        next(rollout)
    assert client.models().name == "tabletop"


def test_a_rollout_that_fails_midway_says_what_the_service_said(client):
    scene = client.scenes()[0]
    rollout = client.rollout(scene.image, [scene.actions[0], "fly to the moon"])
    assert next(rollout).index == 0
    with pytest.raises(UserError, match="no words for 'fly'"):
        next(rollout)


START = (
    b'event: start\ndata: {"source": "%s", "num_steps": 1,\ndata: "round": 0, "idm": "a",'
    b' "fdp": "b"}\n\n'
)


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"", "ended before its last step"),
        (b"event: step\ndata: {}\n\n", "begins with 'step'"),
        (b"event: start\ndata: {}\n\n", "not a RolloutStart"),
        (b"event: start\ndata: not json\n\n", "not a RolloutStart"),
        (START % b"bm8=", "cannot be read"),
        (START, "ended before its last step"),
        (START + b": still here\r\n\r\nevent: step\ndata: {", "ended before its last step"),
        (START + b"event: news\ndata: {}\n\n", "unknown event 'news'"),
        (START + b"event: end\ndata: {}\n\n", "not a RolloutEnd"),
    ],
)
def test_a_broken_stream_is_one_clear_line(client, behaviour, stream, why):
    image = client.scenes()[0].image
    frame = encode_image(image).encode()
    behaviour.raw["/v1/rollouts"] = stream.replace(b"%s", frame)
    with pytest.raises(UserError, match=why) as caught:
        list(client.rollout(image, ["push"]))
    assert "\n" not in str(caught.value)


def test_a_stream_that_breaks_off_goes_on_where_it_was(client, url):
    scene = client.scenes()[0]
    asked = {"seed": 3, "n": 2}
    with client.rollout(scene.image, scene.actions, **asked) as rollout:
        whole = [step.scores for step in rollout]
        expected = rollout.end
    rollout = client.rollout(scene.image, scene.actions, **asked)
    steps = []
    for step in rollout:
        steps.append(step.scores)
        if step.index < 2:
            rollout._response.close()  # as the loss of its replica does
    assert (steps, rollout.end) == (whole, expected)


def test_the_label_names_the_action(client):
    scene = client.scenes()[0]
    after = client.predict(scene.image, scene.actions[0]).image
    reply = client.label(scene.image, after)
    assert reply.action
    assert reply.logprob == pytest.approx(sum(reply.token_logprobs))


def test_pictures_of_any_origin_are_scored(client):
    scene = client.scenes()[0]
    after = client.predict(scene.image, scene.actions[0]).image
    reply = client.score(scene.image, scene.actions[0], [scene.image, after], round=1)
    assert (reply.chosen, reply.is_copy, reply.round) == (1, [True, False], 1)
    assert reply.scores[1] > reply.scores[0]


def test_a_busy_service_is_asked_again_and_not_forever(client, behaviour):
    behaviour.busy = 3
    assert client.models().num_samples == 8
    behaviour.busy = 4
    with pytest.raises(RefusedError, match="all seats are taken; asked 4 times") as caught:
        client.models()
    assert caught.value.status == 503


def test_the_pause_is_the_services_own_within_bounds():
    assert [pause_s(None, attempt) for attempt in range(3)] == [1, 2, 4]
    assert pause_s("7", 0) == 7
    assert pause_s("86400", 0) == 30
    assert 3 < pause_s(formatdate(time.time() + 5, usegmt=True), 0) <= 5
    assert pause_s(formatdate(time.time() - 500, usegmt=True), 0) == 0
    assert pause_s("nan", 1) == pause_s("soon", 1) == 2


def test_the_key_opens_the_service_and_its_absence_is_said(url, client, behaviour):
    behaviour.api_key = "sesame"
    with pytest.raises(RefusedError, match=r"needs an API key; .*api_key=") as caught:
        client.models()
    assert caught.value.status == 401
    with Client(url, api_key="sesame") as keyed:
        assert keyed.models().name == "tabletop"


def test_what_is_refused_is_said_with_the_services_reason(client):
    scene = client.scenes()[0]
    with pytest.raises(RefusedError, match="no words for 'fly'") as caught:
        client.predict(scene.image, "fly")
    assert caught.value.status == 422
    with pytest.raises(RefusedError, match="round 9 is not served"):
        client.predict(scene.image, scene.actions[0], round=9)
    with pytest.raises(RefusedError, match="n: Input should be less"):
        client.predict(scene.image, scene.actions[0], n=99)
    with pytest.raises(RefusedError, match="is no PNG"):
        client.predict(b"no picture", scene.actions[0])


def test_pictures_are_checked_before_they_are_sent(tmp_path):
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(UserError, match=r"must be uint8 \[H, W, 3\]"):
            encode_image(wrong)
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        encode_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="scale it down"):
        encode_image(bytes(api.MAX_IMAGE_BYTES + 1))
    grey = Image.new("LA", (4, 4), (10, 255))
    assert encode_image(grey) == encode_image(grey.convert("RGB"))


def test_no_service_is_one_clear_line():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with Client(url) as client:
        assert not client.ready()
        with pytest.raises(UserError, match=r"no service answers at .*dynamics serve RUN"):
            client.models()
    with Client("127.0.0.1:8000") as client, pytest.raises(UserError, match="must begin with http"):
        client.models()
    with pytest.raises(UserError, match="cannot be used"):
        Client("http://host:port")


def test_a_silent_service_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with (
            Client(url, timeout_s=0.2) as client,
            pytest.raises(UserError, match=r"silent for 0.2"),
        ):
            client.models()


def test_another_kind_of_service_is_told_apart(client):
    with pytest.raises(UserError, match="no dynamics service, or one of another version"):
        client._ask(api.ModelsReply, "GET", "/openapi.json")


def test_readiness_is_true_once_it_is_there(client):
    assert client.ready()


def test_the_example_of_the_module_runs(client, tmp_path):
    buffer = io.BytesIO()
    client.scenes()[0].image.save(buffer, format="PNG")
    (tmp_path / "table.png").write_bytes(buffer.getvalue())
    for step in client.rollout(tmp_path / "table.png", ["push the red ring up"]):
        step.image.save(tmp_path / f"step-{step.index}.png")
    assert (tmp_path / "step-0.png").is_file()
