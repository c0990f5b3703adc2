"""The page in a real browser; the service behind it draws by the tabletop's rules."""

import base64
import io
import json
import re
import subprocess
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from dynamics.core.animation import animation
from dynamics.core.config import ServeConfig
from dynamics.core.seeds import numpy_rng
from dynamics.serving import schemas as api
from dynamics.serving.http.app import make_app
from dynamics.serving.http.responses import ServiceResponse
from dynamics.tabletop.scene import sample_scene
from tests.browser import (
    Seen,
    chromium,
    faults,
    finished,
    needs_chromium,
    new_context,
    opened,
    run,
    watch,
)
from tests.fake_service import PAGE, WORLD, Behaviour, build, event, png, provenance, running

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture(scope="module")
def url(behaviour: Behaviour) -> Iterator[str]:
    with running(build(behaviour)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(autouse=True)
def as_usual(behaviour: Behaviour) -> None:
    vars(behaviour).update(vars(Behaviour()))


def overflow(page: Page) -> int:
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


def photo(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 90).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def test_steps_show_frames_candidates_scores_and_the_oracle(browser, url):
    with opened(browser, url) as page:
        page.check("input[value='table 3']")
        while page.locator("[title=Remove]").count() > 1:
            page.locator("[title=Remove]").last.click()
        page.fill("#actions textarea", page.locator(".chip").nth(0).inner_text())
        page.locator(".chip").nth(1).click()
        run(page, num_steps=2)
        for step in page.locator(".step").all():
            assert step.locator("img.big").evaluate("one => one.naturalWidth") == 32
            assert step.locator(".candidate img").count() == 8
            assert step.locator(".candidate.chosen .tag").all_inner_texts() == ["chosen"]
            scores = [number(one.inner_text()) for one in step.locator(".score").all()]
            assert number(step.locator(".candidate.chosen .score").inner_text()) == max(scores)
            assert step.locator(".mark").inner_text() in ("✓ right", "✗ wrong", "✗ still wrong")
        assert page.locator(".strip img").count() == 3
        assert page.locator(".verdict .mark").first.is_visible()
        assert "total score" in page.inner_text(".run-state")


def test_steps_are_there_while_the_service_still_works_and_stop_ends_it(browser, url, behaviour):
    behaviour.step_s = 0.5
    with opened(browser, url) as page:
        page.click("#run")
        page.wait_for_selector(".step:not(.waiting)")
        assert page.locator(".waiting").count() == 1
        assert "candidate" in page.inner_text("#status")
        page.keyboard.press("Escape")
        page.wait_for_selector("#run:not([hidden])")
        assert page.inner_text(".run-state") == "stopped"
        assert page.locator(".step").count() < 3


def test_two_rounds_run_side_by_side(browser, url):
    with opened(browser, url, viewport={"width": 1280, "height": 900}) as page:
        page.select_option("#versus", "0")
        run(page, num_steps=3, num_columns=2)
        titles = page.locator(".run h3").all_inner_texts()
        assert titles == ["Round 2 promoted", "Round 0 labelled set only"]
        left, right = (one.bounding_box() for one in page.locator(".run").all())
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] < right["x"]
        right = [run.locator(".step .mark.right").count() for run in page.locator(".run").all()]
        assert page.inner_text("#difference") == (
            f"Right steps: {right[0]} of 3 by round 2, {right[1]} of 3 by round 0."
        )


@pytest.mark.parametrize("width", [1400, 375])
def test_nothing_lies_over_the_run_bar_and_it_over_nothing(browser, url, width):
    """Scrolled to any place: its box, on the page and in the window, meets no neighbour's."""
    inside = """() => {
        const bar = document.querySelector("#run").closest(".go");
        const near = [...document.querySelectorAll("#setup *, #contrast, #result, #between")]
            .filter((one) => !one.contains(bar) && !bar.contains(one))
            .filter((one) => one.checkVisibility() && !one.matches(".hidden"));
        const box = bar.getBoundingClientRect();
        const met = near.filter((one) => {
            const other = one.getBoundingClientRect();
            return other.left < box.right && box.left < other.right
                && other.top < box.bottom && box.top < other.bottom;
        });
        return [near.length, met.map((one) => one.outerHTML.slice(0, 80))];
    }"""
    with opened(browser, url, viewport={"width": width, "height": 812}) as page:
        page.click("#options summary")
        run(page, num_steps=3)
        for place in ("header", "#add", "#options", "#between"):
            page.locator(place).first.scroll_into_view_if_needed()
            num_near, met = page.evaluate(inside)
            assert num_near > 50
            assert met == []


@pytest.mark.parametrize("width", [320, 380])
def test_a_phone_does_not_scroll_sideways(browser, url, width):
    size = {"width": width, "height": 700}
    with opened(browser, url, "#versus=0", viewport=size, has_touch=True) as page:
        page.click("#options summary")
        assert overflow(page) == 0
        page.fill("#actions textarea >> nth=0", "push " + "x" * 300)
        run(page, num_steps=0, num_columns=2)
        page.fill("#actions textarea >> nth=0", "push the red ring left")
        run(page, num_steps=3, num_columns=2)
        page.click("#take")
        assert overflow(page) == 0


def test_everything_works_from_the_keyboard(browser, url):
    with opened(browser, url) as page:
        press = page.keyboard.press
        for _ in range(30):
            press("Tab")
            if page.evaluate("document.activeElement.type") == "radio":
                break
        press("ArrowRight")
        assert page.locator("input:checked").input_value() == "table 2"
        press("Tab")
        press("Tab")
        first = page.locator("#actions textarea").first
        assert first.evaluate("one => one === document.activeElement")
        press("Control+a")
        page.keyboard.type("remove the blue square")
        press("Enter")
        press("Control+a")
        page.keyboard.type("push the green ring up")
        press("Control+Enter")
        finished(page, num_steps=3)
        shown = page.locator("h4").all_inner_texts()
        assert shown[:2] == ["1 remove the blue square", "2 push the green ring up"]
        page.focus("#run")
        press("Enter")
        finished(page, num_steps=3)
        assert page.evaluate("document.activeElement.id") == "run"


def test_every_control_has_a_name(browser, url):
    with opened(browser, url) as page:
        page.click("#options summary")
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, select, textarea, input")]
                .filter((one) => !one.closest("dialog"))
                .filter((one) => !(one.labels?.length || one.ariaLabel || one.innerText?.trim()))
                .map((one) => one.outerHTML)"""
        )
        assert unnamed == []


def test_axe_finds_no_fault_on_the_page_before_and_after_a_run(browser, url):
    with opened(browser, url) as page:
        assert faults(page) == []
        page.click("#options summary")
        page.select_option("#versus", "0")
        run(page, num_steps=3, num_columns=2)
        page.click("#take")
        page.wait_for_selector("#answer:has-text('probability')")
        page.fill("#actions textarea >> nth=0", "remove the blu ring")
        expect(page.locator(".unknown")).to_have_text("blu")
        page.set_input_files(
            "#file", {"name": "a.png", "mimeType": "image/png", "buffer": photo(200, 120)}
        )
        page.wait_for_selector("#look:not([hidden])")
        assert faults(page) == []


def test_axe_finds_no_fault_on_the_page_of_the_api(browser, url):
    with new_context(browser) as context:
        page = context.new_page()
        page.goto(f"{url}/docs")
        page.wait_for_selector("h2:has-text('/v1/rollouts')")
        assert faults(page) == []


def test_actions_are_moved_removed_and_pasted_as_lines(browser, url):
    with opened(browser, url) as page:
        rows = page.locator("#actions textarea")
        before = [row.input_value() for row in rows.all()]
        page.click("[aria-label='Move down: action 1']")
        assert rows.nth(1).input_value() == before[0]
        page.click("[aria-label='Remove: action 1']")
        assert rows.count() == 2
        rows.nth(1).fill("")
        rows.nth(1).evaluate(
            """(row) => {
                const clipboardData = new DataTransfer();
                clipboardData.setData("text", "one\\r\\n\\n  two \\nthree");
                row.dispatchEvent(new ClipboardEvent("paste", {clipboardData, cancelable: true}));
            }"""
        )
        assert [row.input_value() for row in rows.all()] == [before[0], "one", "two", "three"]
        for _ in range(20):
            page.click("#add")
            rows.last.fill("more")
        assert rows.count() == 16
        assert "at most 16" in page.inner_text("#note")


def test_the_address_holds_the_settings(browser, url):
    with opened(browser, url) as page:
        page.check("input[value='table 5']")
        page.fill("#actions textarea >> nth=0", "paint the red & blue ring")
        page.click("#options summary")
        page.fill("#n", "3")
        page.fill("#seed", "77")
        page.select_option("#verifier", "idm")
        page.click("#copy-link")
        link = page.evaluate("location.href")
    fields = parse_qs(urlsplit(link).fragment)
    assert fields["scene"] == ["table 5"]
    assert fields["action"][0] == "paint the red & blue ring"
    assert {name: fields[name] for name in ("n", "seed", "verifier")} == {
        "n": ["3"],
        "seed": ["77"],
        "verifier": ["idm"],
    }
    with opened(browser, url, link.removeprefix(f"{url}/")) as page:
        assert page.locator("input:checked").input_value() == "table 5"
        assert page.locator("#n").input_value() == "3"
        assert page.locator("#verifier").input_value() == "idm"
        page.click("#copy-link")
        assert page.evaluate("location.href") == link
    with opened(browser, url, "#n=99&beam=x&verifier=none&round=9&scene=no") as page:
        assert page.locator("#n").input_value() == "8"
        assert page.locator("#round").input_value() == "2"
        assert page.locator("input:checked").input_value() == "table 1"


@pytest.mark.parametrize(("scene", "num_steps"), [("table 1", 3), ("held out", 1)])
def test_a_copied_link_draws_the_same_frames_when_the_defaults_have_changed(
    browser, url, behaviour, scene, num_steps
):
    def drawn(page: Page) -> list[str | None]:
        assert page.locator("#verifier").input_value() == "noisy_channel"
        run(page, num_steps)
        return [one.get_attribute("src") for one in page.locator(".run img").all()]

    with opened(browser, url) as page:
        page.check(f"input[value='{scene}']")
        page.click("#copy-link")
        link = page.evaluate("location.href")
        before = drawn(page)
    models, scenes = (httpx.get(f"{url}/v1/{name}").json() for name in ("models", "scenes"))
    models |= {"verifier": "idm", "num_samples": 2}
    for one in models["rounds"]:
        one["promoted"] = one["round"] == 0
    for one in scenes["scenes"]:
        one["actions"].reverse()
    scenes["contrast"]["source"] = scenes["scenes"][1]["image"]
    behaviour.raw["/v1/models"] = json.dumps(models).encode()
    behaviour.raw["/v1/scenes"] = json.dumps(scenes).encode()
    with opened(browser, url, link.removeprefix(f"{url}/")) as page:
        assert drawn(page) == before


def test_a_persons_own_picture_is_scaled_and_used(browser, url):
    with opened(browser, url) as page:
        file = {"name": "photo.png", "mimeType": "image/png", "buffer": photo(5200, 300)}
        page.set_input_files("#file", file)
        page.wait_for_selector("input[value='your own']:checked")
        chosen = page.locator(".scene:has(:checked) img")
        scaled = chosen.get_attribute("src")
        assert chosen.evaluate("one => one.decode().then(() => one.naturalWidth)") == 1024
        assert page.locator("#examples").is_hidden()
        run(page, num_steps=3)
        page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"})
        page.wait_for_selector("#error:has-text('a.txt is not a picture')")
        page.evaluate(
            """async () => {
                const canvas = new OffscreenCanvas(40, 40);
                canvas.getContext("2d").fillRect(0, 0, 9, 9);
                const file = new File([await canvas.convertToBlob()], "a.png", {type: "image/png"});
                const clipboardData = new DataTransfer();
                clipboardData.items.add(file);
                document.dispatchEvent(new ClipboardEvent("paste", {clipboardData}));
            }"""
        )
        expect(chosen).not_to_have_attribute("src", scaled)
        assert chosen.evaluate("one => one.decode().then(() => one.naturalWidth)") == 40
        assert page.locator("#error").is_hidden()


def test_a_service_without_scenes_waits_for_a_picture(browser, url):
    with new_context(browser) as context:
        page = context.new_page()
        page.route("**/v1/scenes", lambda route: route.fulfill(json={"scenes": []}))
        page.goto(url)
        page.wait_for_selector("#run:enabled")
        page.click("#run")
        assert page.inner_text("#error") == "Choose a picture first."
        file = {"name": "photo.png", "mimeType": "image/png", "buffer": photo(300, 200)}
        page.set_input_files("#file", file)
        page.wait_for_selector("input[value='your own']:checked")
        assert page.locator(".scene img").get_attribute("class") == "frame smooth"
        page.click("#run")
        assert page.inner_text("#error") == "Write at least one action first."
        page.fill("#actions textarea", "push the red ring left")
        run(page, num_steps=1)
        assert page.locator(".big").get_attribute("class") == "frame big"


def test_pictures_are_dropped_where_they_belong(browser, url):
    drop = """async (place) => {
        const canvas = new OffscreenCanvas(20, 20);
        canvas.getContext("2d").fillRect(0, 0, 9, 9);
        const dataTransfer = new DataTransfer();
        const file = new File([await canvas.convertToBlob()], "a.png", {type: "image/png"});
        dataTransfer.items.add(file);
        const how = {dataTransfer, bubbles: true, cancelable: true};
        place.dispatchEvent(new DragEvent("dragenter", how));
        place.dispatchEvent(new DragEvent("drop", how));
    }"""
    with opened(browser, url) as page:
        page.locator("#before").evaluate(drop)
        page.locator("#after").evaluate(drop)
        page.wait_for_selector("#ask:enabled")
        assert page.locator(".scene:has-text('your own')").count() == 0
        page.locator("#drop").evaluate(drop)
        page.wait_for_selector("input[value='your own']:checked")
        assert page.locator(".over").count() == 0


def test_the_key_is_asked_for_kept_in_the_tab_and_sent(browser, url, behaviour):
    behaviour.api_key = "sesame"
    with new_context(browser) as context:
        page = context.new_page()
        seen = watch(page, url)
        page.goto(url)
        page.fill("#key", "wrong")
        page.click("text=Use it")
        page.wait_for_selector("#key-hint:has-text('not taken')")
        page.fill("#key", "sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#run:enabled")
        run(page, num_steps=3)
        page.reload()
        page.wait_for_selector("#run:enabled")
        assert page.evaluate("[sessionStorage.length, JSON.stringify(localStorage)]") == [
            1,
            '{"dynamics-theme":"system"}',
        ]
        assert seen.outside == []
        assert all("401" in error for error in seen.errors)
        other = context.new_page()
        other.goto(url)
        other.wait_for_selector("#key-dialog[open]")
        other.keyboard.press("Escape")
        other.wait_for_selector("#error:has-text('Without its API key')")


def test_refusals_are_one_line_in_place(browser, url, behaviour):
    with new_context(browser) as context:
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#run:enabled")
        page.fill("#actions textarea >> nth=1", "fly to the moon")
        page.click("#run")
        page.wait_for_selector(".run .notice:has-text(\"no words for 'fly'\")")
        assert page.locator(".step:not(.waiting)").count() == 1
        behaviour.busy = 1
        page.click("#run")
        page.wait_for_selector(".run .notice:has-text('busy (all seats are taken). Try again')")
        page.click("#options summary")
        page.fill("#n", "40")
        page.click("#run")
        assert (
            page.inner_text("#error")
            == "Candidates must be a number from 1 to 16, without a fraction."
        )
        page.fill("#n", "2")
        behaviour.raw["/v1/rollouts"] = b": nothing else\n\n"
        page.click("#run")
        page.wait_for_selector(".run .notice:has-text('before its last step')")


def test_the_inverse_side_names_the_last_step(browser, url):
    with opened(browser, url, "#n=16") as page:
        run(page, num_steps=3)
        page.click("#take")
        page.wait_for_selector(
            "#answer:has-text('round 2 gives this sentence a probability of 67 %')"
        )
        file = {"name": "photo.png", "mimeType": "image/png", "buffer": photo(64, 64)}
        page.set_input_files("#after input", file)
        page.wait_for_selector("#answer", state="hidden")
        page.click("#ask")
        page.wait_for_selector("#answer:has-text('found no end')")


def test_the_copied_curl_command_gives_the_same_rollout(browser, url):
    with opened(
        browser,
        url,
        "#n=2&action=remove the red ring",
        permissions=["clipboard-read", "clipboard-write"],
    ) as page:
        page.click("#copy-curl")
        page.wait_for_selector("#note:has-text('in the clipboard')")
        command = page.evaluate("navigator.clipboard.readText()")
        run(page, num_steps=1)
        shown = page.locator(".big").get_attribute("src")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    data = [line.removeprefix("data: ") for line in done.stdout.splitlines() if "data: " in line]
    assert shown == "data:image/png;base64," + json.loads(data[-1])["frames"][0]


def test_the_frames_of_the_best_path_replace_those_of_the_favourites(browser, url, behaviour):
    rng = numpy_rng("beam")
    first, favourite, best = (png(sample_scene(rng, WORLD.grid, 3, 4)) for _ in range(3))
    fields = {"image": favourite, "chosen": 0, "scores": [-1.0], "total": -1.0}
    step = api.RolloutStepMessage(index=0, action="push", num_prefixes=2, **fields)
    start = api.RolloutStart(source=first, num_steps=1, **provenance(None))
    end = api.RolloutEnd(frames=[best], total=-0.5, matches_ground_truth=False)
    behaviour.raw["/v1/rollouts"] = event("start", start) + event("step", step) + event("end", end)
    with opened(browser, url, "#action=push&beam=2") as page:
        run(page, num_steps=1)
        shown = [one.get_attribute("src") for one in page.locator(".strip img").all()]
        assert shown == [f"data:image/png;base64,{image}" for image in (first, best)]
        assert "✗ wrong" in page.inner_text(".run .verdict")
        assert "differs from the favourites" in page.inner_text(".run .verdict")
        assert "2 paths in the race" in page.inner_text(".facts")
        assert page.locator(".step .mark").count() == 0


def test_the_theme_is_a_choice_that_lasts(browser, url):
    with opened(browser, url, color_scheme="light") as page:
        paper = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(paper)
        page.click("#theme")
        assert page.evaluate(paper) == light
        page.click("#theme")
        dark = page.evaluate(paper)
        assert dark != light
        page.reload()
        assert page.evaluate(paper) == dark
        page.click("#theme")
        assert page.evaluate(paper) == light


CONTRASTS = """() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (text) => rgb(text).slice(0, 3)
        .map((one) => one / 255)
        .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
        .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
    const behind = (one) => {
        const {backgroundColor} = getComputedStyle(one);
        return rgb(backgroundColor)[3] === 0 ? behind(one.parentElement) : backgroundColor;
    };
    const shown = (one) => one.checkVisibility() && [...one.childNodes].some((node) =>
        node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    return [...document.querySelectorAll("body *")]
        .filter((one) => shown(one) && !one.closest(":disabled"))
        .map((one) => {
            const pair = [light(getComputedStyle(one).color), light(behind(one))];
            const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
            return [ratio, one.outerHTML.slice(0, 80)];
        });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser, url, scheme):
    with opened(browser, url, "#versus=0&beam=2", color_scheme=scheme) as page:
        page.click("#options summary")
        run(page, num_steps=3, num_columns=2)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert min(contrasts)[0] >= 4.5, min(contrasts)


def test_nothing_moves_for_who_does_not_want_it(browser, url):
    for wish, name in (("reduce", "none"), ("no-preference", "appear")):
        with opened(browser, url, reduced_motion=wish) as page:
            run(page, num_steps=3)
            style = "one => getComputedStyle(one).animationName"
            assert page.locator(".step").last.evaluate(style) == name


def test_the_stream_is_read_as_the_standard_says(browser, url):
    with opened(browser, url) as page:
        stream = (
            "\ufeff: hi\r\n\r\nevent: a\r\ndata: 1\rdata:2\r\n\r\n"
            "\ndata\ndata:  ü: x\n\nevent: b\n\ndata: cut"
        )
        read = page.evaluate(
            """async (text) => {
                const { readEvents } = await import("./service.js");
                const bytes = new TextEncoder().encode(text);
                const stream = new ReadableStream({
                    start(queue) {
                        for (const byte of bytes) queue.enqueue(new Uint8Array([byte]));
                        queue.close();
                    },
                });
                const events = [];
                for await (const { name, data } of readEvents(stream)) events.push([name, data]);
                return events;
            }""",
            stream,
        )
        assert read == [["a", "1\n2"], ["message", "\n ü: x"]]


def test_nothing_runs_without_a_service(browser, url):
    with new_context(browser) as context:
        page = context.new_page()
        page.route("**/v1/models", lambda route: route.abort())
        page.goto(url)
        page.wait_for_selector("#error:has-text('does not answer')")
        assert page.locator("#run").is_disabled()
        assert watch(page, url) == Seen()


ASK = """async (url) => {
    const json = { "content-type": "application/json" };
    const form = new FormData();
    form.append("image", new Blob(["x"]), "x.png");
    form.append("action", "push it");
    const text = JSON.stringify({ image: "eA==", action: "push it" });
    const pairs = new URLSearchParams({ action: "push it" });
    const outcomes = [];
    for (const [path, options] of [
        ["predict", { method: "POST", headers: json, body: text }],
        ["predict", { method: "POST", body: form }],
        ["predict", { method: "POST", mode: "no-cors", body: text }],
        ["predict", { method: "POST", mode: "no-cors", body: form }],
        ["predict", { method: "POST", mode: "no-cors", body: pairs }],
        ["models", { mode: "no-cors" }],
        ["models", {}],
    ]) {
        const told = fetch(`${url}/v1/${path}`, options).then((reply) => reply.status);
        outcomes.push(await told.catch(() => "blocked"));
    }
    return outcomes;
}"""
SEND = """([url, kind]) => {
    const form = document.createElement("form");
    Object.assign(form, { method: "post", enctype: kind, action: `${url}/v1/predict` });
    form.innerHTML = `<input name='{"image": "eA==", "action": "a", "round' value='": 0}'>`;
    document.body.append(form);
    form.submit();
}"""


def test_a_page_of_another_origin_makes_the_service_do_nothing(browser, url):
    class Backend:
        asked = 0

        async def predict(self, *_: object) -> ServiceResponse:
            self.asked += 1
            return ServiceResponse(200, "{}")

        async def models(self) -> ServiceResponse:
            return await self.predict()

    backend = Backend()
    app = make_app(backend, ServeConfig(), PAGE, None)  # type: ignore[arg-type]  all that is asked
    with running(app) as service, new_context(browser) as context:
        page = context.new_page()
        page.goto(f"{service}/docs")
        assert page.evaluate(ASK, service) == [200, 200, 415, 200, 415, 200, 200]
        assert backend.asked == 5
        for other in (url, url.replace("127.0.0.1", "localhost")):  # same site, another site
            page.goto(f"{other}/docs")
            assert set(page.evaluate(ASK, service)) <= {"blocked", 0}
            for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
                page.goto(f"{other}/nothing")
                with page.expect_response("**/v1/predict") as reply:
                    page.evaluate(SEND, [service, kind])
                assert reply.value.status == 403
                page.wait_for_url("**/v1/predict")  # else the next visit collides with this one
        assert backend.asked == 5


def test_a_finished_rollout_is_played_back_kept_and_gone_on_from(browser, url):
    with opened(browser, url) as page:
        page.check("input[value='table 3']")
        run(page, num_steps=3)
        slider = page.get_by_role("slider", name="Frame")
        caption = page.locator(".player .player-caption")
        expect(caption).to_have_text(re.compile("^3 of 3: "))
        page.get_by_role("button", name="Play").click()
        expect(caption).to_have_text("0 of 3: the given picture")
        expect(caption).to_have_text(re.compile("^3 of 3: "))
        slider.focus()
        page.keyboard.press("ArrowLeft")
        expect(caption).to_have_text(re.compile("^2 of 3: "))

        def kept(kind: str) -> bytes:
            with page.expect_download() as found:
                page.get_by_role("button", name=kind).click()
            return found.value.path().read_bytes()

        shown = [one.get_attribute("src") for one in page.locator(".run .strip img").all()]
        frames = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))) for one in shown]
        assert kept("GIF") == animation(frames, "gif", seconds=0.9)
        assert kept("MP4") == animation(frames, "mp4", seconds=0.9)
        record = json.loads(kept("JSON"))
        assert [m.get("index") for m in record["messages"]] == [None, 0, 1, 2, None]
        page.locator(".step").nth(1).locator(".branch").first.click()
        expect(page.locator("#actions textarea")).to_have_count(1)
        finished(page, num_steps=1)


def test_the_first_visit_shows_what_the_rounds_have_changed(browser, url):
    with opened(browser, url, reduced_motion="reduce") as page:
        assert "312 of 1,000 held-out pairs; with 41 it is the other way" in page.inner_text(
            "#contrast"
        )
        assert page.locator("#contrast .mark").all_inner_texts() == ["✗ wrong", "✓ right"]
        page.click("text=Ask both rounds")
        finished(page, num_steps=1, num_columns=2)
        assert page.locator(".run h3").all_inner_texts()[1] == "Round 0 labelled set only"
        assert page.locator("#contrast").is_hidden()


def test_on_a_phone_the_first_visit_begins_with_what_the_rounds_have_changed(browser, url):
    with opened(browser, url, viewport={"width": 375, "height": 812}) as page:
        form = page.locator("#setup").bounding_box()
        button = page.locator("#contrast button").bounding_box()
        assert button["y"] + button["height"] < form["y"] < 812
        frames = [one.bounding_box() for one in page.locator("#contrast img").all()]
        assert len({one["y"] for one in frames}) == 1
        assert min(one["width"] for one in frames) >= 64


def test_the_first_visit_plays_what_both_rounds_draw_for_less_than_five_seconds(browser, url):
    with new_context(browser) as context:
        page = context.new_page()
        page.clock.install(time=0)
        page.clock.pause_at(1)
        page.goto(url)
        page.wait_for_selector("#run:enabled")
        source, *drawn = page.locator("#contrast img").all()
        before, after = (one.get_attribute("src") for one in (source, drawn[-1]))
        page.clock.run_for(1200)
        assert {one.get_attribute("src") for one in drawn} == {before}
        page.clock.run_for(1200)
        assert drawn[-1].get_attribute("src") == after
        page.clock.run_for(2500)
        assert drawn[-1].get_attribute("src") == after
        page.clock.run_for(1200)
        assert drawn[-1].get_attribute("src") == after


def test_a_persons_own_picture_is_shown_as_the_model_sees_it_and_travels_in_the_link(browser, url):
    def brought(page: Page, name: str, content: bytes) -> None:
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
        page.wait_for_selector("#look:not([hidden])")

    def frames(page: Page) -> list[str | None]:
        run(page, num_steps=1)
        return [one.get_attribute("src") for one in page.locator(".run .strip img").all()]

    with opened(browser, url, "#action=remove the red ring") as page:
        brought(page, "table.png", base64.b64decode(png(sample_scene(numpy_rng("own"), 3, 3, 3))))
        assert "held-out frames of this run lose at most 20.0" in page.inner_text("#look-text")
        assert page.locator("#unlike").is_hidden()
        drawn = frames(page)
        page.click("#copy-link")
        link = page.evaluate("location.href")
        brought(page, "noise.png", photo(200, 200))
        expect(page.locator("#unlike")).to_contain_text("unlike what the model was trained on")
    with opened(browser, url, link.removeprefix(f"{url}/")) as page:
        page.wait_for_selector("#look:not([hidden])")
        assert frames(page) == drawn
        page.check("input[value='table 2']")
        assert page.locator("#look").is_hidden()
        assert page.locator("#unlike").is_hidden()


def test_unknown_words_are_underlined_with_the_nearest_known_one(browser, url):
    with opened(browser, url, "#action=remove the blu ring") as page:
        row = page.locator("#actions li").first
        expect(row.locator(".unknown")).to_have_text("blu")
        row.get_by_role("button", name="blue", exact=True).click()
        expect(row.locator(".nearest")).to_have_count(0)
        text = row.locator("textarea")
        assert text.input_value() == "remove the blue ring"
        text.press("End")
        text.type(" upp")
        expect(row.locator(".unknown")).to_have_text("upp")
        expect(row.locator(".nearest")).to_have_text("The model does not know “upp”. up? ")
        assert text.get_attribute("aria-invalid") == "true"
        text.fill("push the red ring left")
        expect(row.locator(".unknown")).to_have_count(0)
