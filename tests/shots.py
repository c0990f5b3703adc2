"""Pictures of the page for the README, from a service that runs.

python -m tests.shots http://127.0.0.1:8000 docs
"""

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.browser import chromium, new_context

NUM_COLOURS = 256
GAP_PX = 24
MAX_BYTES = 150_000


def save(picture: Image.Image, path: Path) -> None:
    """As a small PNG: flat areas and small frames lose nothing in a palette."""
    # Of the methods the one that keeps rare colours, which here are the objects.
    palette = picture.convert("RGB").quantize(
        NUM_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
    )
    palette.save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path} has more than {MAX_BYTES:,} bytes; fewer steps would do")


def shot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(animations="disabled")))


def ran(page: Page, url: str, settings: str) -> None:
    """The page after a roll-out, the last step named by the inverse side."""
    page.goto(f"{url}/#{settings}")
    page.wait_for_selector("#run:enabled")
    page.click("#run")
    page.wait_for_selector("#run:not([hidden])")
    page.click("#take")
    page.wait_for_selector("#answer:has-text('probability')")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")


def whole(browser: Browser, url: str, settings: str, scheme: str) -> Image.Image:
    """A wide window that is as high as its page."""
    size = {"width": 1280, "height": 900}
    with new_context(browser, viewport=size, color_scheme=scheme) as context:
        page = context.new_page()
        ran(page, url, settings)
        size["height"] = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size(size)
        return shot(page)


def phone(browser: Browser, url: str, settings: str) -> Image.Image:
    """Three screens of a phone, side by side: the first visit, what is drawn, what is read back."""
    size = {"width": 375, "height": 812}
    with new_context(browser, viewport=size, reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#contrast:not([hidden])")
        screens = [shot(page)]
        ran(page, url, settings)
        for place in ("#result", "#between"):
            page.locator(place).evaluate("one => one.scrollIntoView()")
            screens.append(shot(page))
    width = size["width"] + GAP_PX
    joined = Image.new("RGB", (len(screens) * width - GAP_PX, size["height"]), "#9aa3ad")
    for index, screen in enumerate(screens):
        joined.paste(screen, (index * width, 0))
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    with chromium() as browser:
        save(whole(browser, asked.url, "scene=table 4", "light"), asked.out / "page-wide.png")
        save(
            whole(browser, asked.url, "scene=table 3&versus=0", "dark"), asked.out / "page-dark.png"
        )
        save(phone(browser, asked.url, "scene=table 3"), asked.out / "page-phone.png")


if __name__ == "__main__":
    main()
