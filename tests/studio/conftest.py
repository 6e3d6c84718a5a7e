"""A real browser and real servers for the tests of the studio, and what no visit may do.

Independent of single views.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.real_server import RealServer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
WAIT_MS = 60_000

expect.set_options(timeout=WAIT_MS)  # an end to waiting where something is broken

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()

OpenStudio = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_server(browser: Browser, tiny_cache: Path) -> Iterator[RealServer]:
    """A server with the demonstration model. It depends on the browser, so that none starts where there is none."""
    with RealServer({"YUE_MODEL": "tiny", "XDG_CACHE_HOME": str(tiny_cache), "OMP_NUM_THREADS": "1"}) as server:
        server.wait_until_answered()
        yield server


@pytest.fixture(scope="session")
def server(browser: Browser) -> Iterator[RealServer]:
    """A server with a light engine, for everything but what the real one does."""
    with RealServer({"YUE_MODEL": "tiny"}, "tests.studio.melody:melody_app()") as server:
        server.wait_until_answered()
        yield server


@pytest.fixture
def visit(browser: Browser) -> Iterator[OpenStudio]:
    """Opens the studio of a server in a browser that has never been there.

    In the end it fails if a page logged an error that was not `expected`, or asked another host for anything.
    """
    contexts, troubles = [], []

    def open_studio(server: RealServer, view: str = "write", expected: tuple[str, ...] = (), **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()

        def on_console(message: Any) -> None:
            if message.type in ("error", "warning") and not any(text in message.text for text in expected):
                troubles.append(f"console: {message.text}")

        def on_request(request: Any) -> None:
            if not request.url.startswith((server.url + "/", "data:", "blob:")):
                troubles.append(f"a request to {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: troubles.append(f"an exception: {error}"))
        page.on("request", on_request)
        page.goto(f"{server.url}/#/{view}")
        return page

    yield open_studio
    for context in contexts:
        context.close()
    assert not troubles


def violations(page: Page) -> list[str]:
    """What axe-core finds."""
    page.evaluate(f"{AXE};0")
    found = page.evaluate("() => axe.run(document)")
    assert len(found["passes"]) > 10
    return [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]
