"""Client, environment and page against a real Ray Serve with models of a real, tiny run."""

from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from playwright.sync_api import Browser

import dynamics.client.gym_env
from dynamics.client.client import Client, RefusedError
from dynamics.core.config import LoopConfig, ServeConfig
from dynamics.storage.run_folder import RunFolder
from ray_jobs.serving import serve
from tests.browser import chromium, finished, needs_chromium, new_context, opened, run
from tests.runs import LocalRun
from tests.serving import free_port

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def url(small: LoopConfig, local_run: LocalRun, local_ray: None) -> Iterator[str]:
    from ray import serve as ray_serve

    cfg = small.model_copy(update={"serve": ServeConfig(port=free_port(), num_samples=3)})
    ray_serve.shutdown()  # the proxy of another module keeps that module's port
    yield serve.deploy(cfg, RunFolder(local_run.folder), 1)
    ray_serve.shutdown()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


def test_the_client_speaks_the_services_language(client, small):
    assert client.ready()
    models = client.models()
    assert [one.round for one in models.rounds] == [0, 1]
    scene = client.scenes()[0]
    assert scene.image.size == (small.world.frame_px, small.world.frame_px)
    reply = client.predict(scene.image, scene.actions[0], n=4, seed=5, candidates=True)
    assert reply.source.tobytes() == scene.image.tobytes()
    assert len(reply.candidates) == len(reply.scores) == 4
    assert reply.matches_ground_truth in (True, False)
    assert client.label(reply.source, reply.image).logprob <= 0
    again = client.predict(scene.image, scene.actions[0], n=4, seed=5)
    assert (again.image.tobytes(), again.scores) == (reply.image.tobytes(), reply.scores)


def test_a_rollout_streams_its_steps_and_ends_on_the_best_path(client):
    scene = client.scenes()[1]
    with client.rollout(scene.image, scene.actions[:3], n=2, beam=2, round=0) as rollout:
        steps = list(rollout)
    assert [step.action for step in steps] == list(scene.actions[:3])
    assert (rollout.round, rollout.num_steps, len(rollout.end.frames)) == (0, 3, 3)
    assert rollout.end.total == pytest.approx(steps[-1].total)


def test_what_the_service_refuses_has_its_reason(client):
    scene = client.scenes()[0]
    with pytest.raises(RefusedError) as caught:
        client.predict(scene.image, "push " * 90)
    assert caught.value.status == 422
    with pytest.raises(RefusedError) as caught:
        client.predict(scene.image, scene.actions[0], round=7)
    assert "7" in str(caught.value)
    with pytest.raises(RefusedError, match="picture"):
        client.predict(b"nothing", scene.actions[0])


def test_gymnasium_finds_nothing_wrong(url):
    made = gymnasium.make("dynamics/Rollout-v0", url=url, n=2, render_mode="rgb_array")
    check_env(made.unwrapped)
    made.close()


def test_a_random_agent_survives_and_a_seed_repeats_an_episode(url):
    env = dynamics.client.gym_env.RolloutEnv(url, n=2, max_steps=4)

    def play() -> list[np.ndarray]:
        frame, info = env.reset(seed=3)
        env.action_space.seed(3)
        texts = [*info["actions"][:3], env.action_space.sample()]
        return [frame, *(env.step(text)[0] for text in texts)]

    first, second = play(), play()
    np.testing.assert_array_equal(first, second)
    env.close()


@needs_chromium
def test_the_page_shows_a_rollout_of_the_served_models(browser, url, small):
    with opened(browser, url) as page:
        page.check("input[value='table 2']")
        while page.locator("[title=Remove]").count() > 1:
            page.locator("[title=Remove]").last.click()
        page.locator("#actions textarea").fill(page.locator(".chip").nth(0).inner_text())
        page.locator(".chip").nth(1).click()
        run(page, num_steps=2)
        for step in page.locator(".step").all():
            width = step.locator("img.big").evaluate("one => one.naturalWidth")
            assert width == small.world.frame_px
            assert step.locator(".candidate img").count() == 3
            assert step.locator(".candidate.chosen").count() == 1
            assert step.locator(".mark").inner_text() in ("✓ right", "✗ wrong", "✗ still wrong")
        assert page.locator(".strip img").count() == 3
        assert page.locator(".verdict .mark").is_visible()
        page.click("#take")
        page.wait_for_selector("#answer:not([hidden]):not(:has-text('looking'))")
        assert "notice" not in page.locator("#answer").get_attribute("class").split()


@needs_chromium
def test_the_page_compares_two_rounds_on_a_phone_by_keyboard(browser, url):
    size = {"width": 380, "height": 720}
    with opened(browser, url, "#versus=0&n=2", viewport=size) as page:
        page.keyboard.press("Control+Enter")
        finished(page, num_steps=3, num_columns=2)
        titles = page.locator(".run h3").all_inner_texts()
        assert titles == ["Round 1 promoted", "Round 0 labelled set only"]
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


@needs_chromium
def test_the_page_says_why_the_service_refuses(browser, url):
    with new_context(browser) as context:
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#run:enabled")
        page.fill("#actions textarea >> nth=0", "push " * 90)
        page.click("#run")
        page.wait_for_selector(".run .notice:has-text('action')")
        assert page.locator(".step").count() == 0


@needs_chromium
def test_the_api_page_lists_what_can_be_asked(browser, url):
    with opened(browser, url) as page:
        page.click("nav a:has-text('API')")
        page.wait_for_selector("h2:has-text('/v1/rollouts')")
        fields = page.locator("section:has(h2:has-text('/v1/predict')) th").all_inner_texts()
        assert {"image", "action", "temperature", "scores", "matches_ground_truth"} <= set(fields)
        assert page.locator("section:has(h2:has-text('/v1/rollouts')) h3").all_inner_texts() == [
            "Request",
            "Event start",
            "Event step",
            "Event end",
            "Event error",
        ]
