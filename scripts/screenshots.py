"""Takes the pictures of docs/studio.md: each view of the studio of a running server, light and dark, and on a phone.

It generates a short song there, and needs Chromium and requirements-dev.txt.

    python scripts/screenshots.py http://127.0.0.1:8080
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

PICTURES = Path(__file__).parent.parent / "docs" / "studio"
WAIT_MS = 300_000
DESKTOP = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def main(address: str) -> None:
    """Take all pictures."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("screenshots.py: Chromium is not installed (Debian: apt-get install chromium)")
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        song = generate_song(browser, address)
        for scheme in ("light", "dark"):
            page = open_studio(browser, scheme, DESKTOP)
            show_song(page, address, song)
            take(page, f"listen-{scheme}")
            page.context.close()
            page = open_studio(browser, scheme, DESKTOP)
            picture_views(page, address, scheme)
            page.context.close()
            page = open_studio(browser, scheme, PHONE)
            show_song(page, address, song)
            take(page, f"phone-{scheme}")
            page.context.close()
        browser.close()


def open_studio(browser: Browser, scheme: str, options: Mapping[str, object]) -> Page:
    """A page in a browser of its own."""
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", **options)  # type: ignore[arg-type]
    context.set_default_timeout(WAIT_MS)
    return context.new_page()


def write_example(page: Page, address: str) -> None:
    """Write the example, with a third section that YuE may not understand."""
    page.goto(f"{address}/#/write")
    page.get_by_role("button", name="Start from an example").click()
    lyrics = page.get_by_label("Lyrics", exact=True)
    lyrics.fill(lyrics.input_value() + "\n[whisper]\nCarry me over, carry me home\nThe tide knows a way of its own\n")
    expect(page.get_by_role("list", name="Notes on the lyrics")).to_contain_text("whisper")


def generate_song(browser: Browser, address: str) -> str:
    """Generate a song, with a picture half-way through in each theme, and return its id."""
    page = open_studio(browser, "light", DESKTOP)
    write_example(page, address)
    page.get_by_label("Sections", exact=True).fill("2")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".clock")).to_have_text(re.compile("^0:0[2-9]"), timeout=WAIT_MS)  # it plays already
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        take(page, f"making-{scheme}")
    expect(page.get_by_role("group", name="Tracks")).to_be_visible(timeout=WAIT_MS)
    song = page.url.rpartition("/")[2]
    page.context.close()
    return song


def show_song(page: Page, address: str, song: str) -> None:
    """Show a song a third of the way through."""
    page.goto(f"{address}/#/song/{song}")
    expect(page.get_by_role("group", name="Tracks")).to_be_visible(timeout=WAIT_MS)
    wave = page.get_by_role("slider", name="Position in the song")
    expect(page.locator(".stanza").first).to_be_visible()
    box = wave.bounding_box()
    assert box
    wave.click(position={"x": box["width"] * 0.35, "y": box["height"] / 2})
    expect(page.locator(".stanza.here")).to_be_visible()


def picture_views(page: Page, address: str, scheme: str) -> None:
    """Take a picture of each of the other views."""
    write_example(page, address)
    take(page, f"write-{scheme}")
    page.goto(f"{address}/#/library")
    expect(page.locator(".row").first).to_be_visible()
    take(page, f"library-{scheme}")
    page.goto(f"{address}/#/models")
    expect(page.locator(".model h2")).to_be_visible()
    take(page, f"models-{scheme}")


def take(page: Page, name: str) -> None:
    """Write a picture of what is seen."""
    page.mouse.move(1, 1)
    page.evaluate("() => { scrollTo(0, 0); document.activeElement.blur(); }")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    with Image.open(io.BytesIO(page.screenshot())) as seen:
        seen.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE).save(
            PICTURES / f"{name}.png", optimize=True
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1].rstrip("/"))
