"""The page of `dynamics annotate` and the contact sheet in a real browser."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from dynamics.annotate.candidates import Offer
from dynamics.annotate.server import make_app
from dynamics.core.config import KeyframeConfig
from dynamics.data.video.ingest import Folder, IngestReport
from dynamics.report import sheet
from tests.browser import Seen, chromium, faults, needs_chromium, new_context, watch
from tests.fake_service import running

pytestmark = needs_chromium
SENTENCES = [
    f"{verb} the {colour} block {where}"
    for verb, where in (("push", "left"), ("push", "right"), ("pull", "closer"))
    for colour in ("red", "blue", "green", "yellow")
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


class FakeIdm:
    """Offers one sentence for everything."""

    round = 2

    def __init__(self) -> None:
        self.images = type("Images", (), {"frame_px": 64, "bars": None})

    def name(self, frames_BHW3, ends_P2):
        return [Offer("push the red block left", 0.42)] * len(ends_P2)


def at(page: Page, turn: int) -> None:
    """Wait until the pair after so many answers is on the screen."""
    page.wait_for_selector(f"body[data-turn='{turn}']")


def answered(page: Page, turn: int, *keys: str) -> None:
    for key in keys:
        if len(key) > 1 and " " in key:
            page.keyboard.type(key)
        else:
            page.keyboard.press(key)
    at(page, turn)


def test_pairs_are_named_by_keyboard_alone(browser, opened, tmp_path):
    with (
        opened(tmp_path / "labels.parquet", namer=FakeIdm()) as session,
        running(make_app(session)) as url,
        new_context(browser, viewport={"width": 1400, "height": 900}) as context,
    ):
        page = context.new_page()
        seen = watch(page, url)
        page.goto(url)
        at(page, 0)
        assert page.locator("#source").evaluate("one => one.naturalWidth") == 64
        answered(page, 1, "Enter")  # what the model offers
        answered(
            page,
            2,
            "Tab",
            "End",
            "Backspace",
            "Backspace",
            "Backspace",
            "Backspace",
            " right",
            "Enter",
        )
        answered(page, 3, "lift the lid", "Enter")
        answered(page, 4, "1")
        answered(page, 5, "0")
        answered(page, 6, "?")
        answered(page, 7, "Escape")
        answered(page, 6, "Control+z")
        answered(page, 7, "l", "i", "ArrowDown", "Enter")
        page.keyboard.press("Space")
        assert page.inner_text("#play") == "Play"
        said = [(one.kind, one.action) for one in session.answers]
        assert said[:4] == [
            ("action", "push the red block left"),
            ("action", "push the red block right"),
            ("action", "lift the lid"),
            ("action", page.locator("#words li span").nth(0).inner_text()),
        ]
        assert said[4:] == [("no_change", ""), ("unsure", ""), ("action", "lift the lid")]
        assert {one.offered for one in session.answers} == {"push the red block left"}
        assert session.answers[0].round == 2
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.click("[data-kind='unsure']")
        at(page, 8)
        page.reload()
        at(page, 8)
        assert seen == Seen()


def test_axe_finds_no_fault_on_the_page_of_annotate(browser, opened, tmp_path):
    with (
        opened(tmp_path / "labels.parquet", namer=FakeIdm()) as session,
        running(make_app(session)) as url,
        new_context(browser) as context,
    ):
        page = context.new_page()
        page.goto(url)
        at(page, 0)
        answered(page, 1, "Enter")
        answered(page, 2, "lift the lid", "Enter")
        assert faults(page) == []


def typed(page: Page, sentence: str) -> int:
    """Write a sentence, with Tab wherever the page has the rest of a word; returns the keys."""
    keys = 0
    while (written := page.input_value("#sentence").strip()) != sentence:
        keys += 1
        rest = page.locator("#ghost").evaluate("one => one.lastChild.textContent")
        value = page.input_value("#sentence")
        goes_on = f"{sentence} ".startswith(f"{value}{rest} ")
        page.keyboard.press("Tab" if len(rest) > 1 and goes_on else sentence[len(value)])
        assert keys < 100, written
    return keys


@pytest.mark.slow
def test_sixty_pairs_take_less_than_five_minutes(browser, opened, tmp_path):
    """Waits are measured; keys and looks are priced as for an average person.

    Keystroke-level model (Card, Moran, Newell 1980): 0.28 s a key, 1.35 s to make up one's mind;
    2 s to see a film.
    """
    rng = np.random.default_rng(0)
    keys, waited_s = 0, 0.0
    with (
        opened(tmp_path / "labels.parquet", repeat_every=0) as session,
        running(make_app(session)) as url,
        new_context(browser) as context,
    ):
        page = context.new_page()
        began = time.perf_counter()
        page.goto(url)
        at(page, 0)
        waited_s += time.perf_counter() - began
        for turn in range(55):  # of 56 pairs
            wanted = SENTENCES[rng.integers(len(SENTENCES))]
            listed = page.locator("#words li").all_inner_texts()
            places = [number for number, text in enumerate(listed[:9]) if wanted in text]
            last = str(places[0] + 1) if places else "Enter"
            keys += 1 if places else typed(page, wanted) + 1
            began = time.perf_counter()
            page.keyboard.press(last)
            at(page, turn + 1)
            waited_s += time.perf_counter() - began
        assert [one.kind for one in session.answers] == ["action"] * 55
        assert {one.action for one in session.answers} <= set(SENTENCES)
    total_s = 60 / 55 * (waited_s + 0.28 * keys + 55 * (1.35 + 2.0))
    assert total_s <= 300, f"{keys} keys, {waited_s:.1f} s of waiting"


def clip(number: int, verdict: str) -> sheet.ClipView:
    white = np.full((2, 96, 96, 3), 255, np.uint8)
    return sheet.ClipView(
        name=f"{number:03d}.mp4",
        clip_class="",
        uri=sheet._strip(white, white[:, ::3, ::3], 40_000),
        columns=2,
        pairs=[sheet.PairView(verdict=verdict, motion=0.02, changed=3, times_s=(0.0, 1.0))],
        left_out=0,
    )


def made_sheet(tmp_path: Path) -> str:
    """Address of the contact sheet of 60 clips."""
    clips = [clip(number, "near_copy" if number == 50 else "accepted") for number in range(60)]
    report = IngestReport(
        num_clips=60,
        num_read=60,
        num_pairs=59,
        in_two_folders=0,
        rejects=sheet.Counter({"pair/near_copy": 1}),
        rejected_clips=(),
    )
    folder = Folder(root=tmp_path, keyframes=KeyframeConfig())
    path = tmp_path / "pairs.html"
    path.write_text(sheet._render(folder, report, clips, [c.pairs[0] for c in clips], 16))
    return path.as_uri()


def test_axe_finds_no_fault_on_a_sheet(browser, tmp_path):
    with new_context(browser) as context:
        page = context.new_page()
        page.goto(made_sheet(tmp_path))
        assert faults(page) == []


def test_a_sheet_is_leafed_through_and_filtered_without_a_script(browser, tmp_path):
    url = made_sheet(tmp_path)
    with new_context(browser, viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        seen = watch(page, url)
        page.goto(url)
        shown = page.locator(".clip:visible")
        assert shown.count() == 24
        page.click(".pages a >> text=3")
        assert shown.locator("h3").all_inner_texts() == [f"{n:03d}.mp4" for n in range(48, 60)]
        page.click("label[for='f-near_copy']")
        assert shown.locator("h3").all_inner_texts() == ["050.mp4"]
        assert (
            shown.locator("img").evaluate("one => one.decode().then(() => one.naturalHeight)")
            == 192
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert seen == Seen()
