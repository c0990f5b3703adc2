"""An installed chromium, for tests of the page: nothing is downloaded, no sandbox needed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to show the page")
TIMEOUT_MS = 20_000


@dataclass
class Seen:
    """What a page must not do, as far as it did it."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        # Containers rarely let a browser have its sandbox; only our own page is opened in it.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, hash_: str = "", **context: object) -> Iterator[Page]:
    """The service's page, ready to run; what it does wrong fails the test at the end."""
    with new_context(browser, **context) as made:
        page = made.new_page()
        seen = watch(page, url)
        page.goto(f"{url}/{hash_}")
        page.wait_for_selector("#run:enabled")
        yield page
        assert seen == Seen()


@contextmanager
def new_context(browser: Browser, **context: object) -> Iterator[BrowserContext]:
    """A fresh profile: no storage, no cookies."""
    made = browser.new_context(**context)  # type: ignore[arg-type]
    made.set_default_timeout(TIMEOUT_MS)
    yield made
    made.close()


def watch(page: Page, url: str) -> Seen:
    """Collect errors, and requests to anywhere but the service."""
    seen = Seen()
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("console", lambda line: line.type == "error" and seen.errors.append(line.text))
    page.on(
        "request",
        lambda asked: (
            asked.url.startswith((url, "data:", "blob:")) or seen.outside.append(asked.url)
        ),
    )
    return seen


def run(page: Page, num_steps: int, num_columns: int = 1) -> None:
    """Press Run and wait for the end of every column."""
    page.click("#run")
    finished(page, num_steps, num_columns)


def finished(page: Page, num_steps: int, num_columns: int = 1) -> None:
    """Wait until every column has its steps and Run is back."""
    page.wait_for_selector("#run:not([hidden])")
    assert page.locator(".run").count() == num_columns
    assert page.locator(".step").count() == num_steps * num_columns
    assert page.locator(".waiting").count() == 0


def faults(page: Page) -> list[str]:
    """What axe-core finds on the page, wide and on a phone, light and dark; and what overflows."""
    found = []
    for width in (1400, 375):
        page.set_viewport_size({"width": width, "height": 812})
        if (needed := page.evaluate("document.documentElement.scrollWidth")) > width:
            found.append(f"{width} px: the page needs {needed}")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  one of its words
            for fault in Axe().run(page).response["violations"]:
                places = [node["html"][:120] for node in fault["nodes"]]
                found.append(f"{width} px, {scheme}: {fault['help']}: {places}")
    return found
