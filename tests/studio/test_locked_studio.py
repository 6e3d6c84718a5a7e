"""The studio of a server that has a key and no weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.studio.conftest import OpenStudio, violations
from tests.support.real_server import RealServer

pytestmark = [pytest.mark.browser, pytest.mark.slow]
KEY = "a-key-of-the-tests-own"
UNAUTHORIZED, FORBIDDEN = "401", "403"


@pytest.fixture(scope="module")
def locked_server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """Its weights can never come: the Hub is switched off, and nothing is on disk."""
    folder: Path = tmp_path_factory.mktemp("nothing")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    settings = {"YUE_MODEL": "en-cot", "YUE_API_KEY": KEY, "YUE_ADMIN": "off", "YUE_DEVICE": "cpu", **offline}
    with RealServer(settings) as server:
        server.key = KEY
        server.wait_until_answered()
        yield server


def sign_in(page: Page, key: str = KEY) -> None:
    page.get_by_role("textbox", name="Key").fill(key)
    page.get_by_role("button", name="Open the studio").click()


def test_a_wrong_key_is_refused_and_the_right_one_is_asked_for_once(
    visit: OpenStudio, locked_server: RealServer
) -> None:
    page = visit(locked_server, expected=(UNAUTHORIZED, FORBIDDEN))
    sign_in(page, "a key of somebody else")
    expect(page.locator("#error-key")).to_contain_text("key")
    assert not violations(page)
    sign_in(page, f" {KEY}\t")  # as it may be pasted
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.reload()
    expect(page.get_by_role("link", name="en-cot")).to_be_visible()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.context.clear_cookies()  # as after twelve hours
    page.get_by_role("link", name="Library").click()
    sign_in(page)
    expect(page.get_by_text("No songs yet")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_a_first_visit_shows_that_weights_come_first_and_a_failed_download_what_to_do(
    visit: OpenStudio, locked_server: RealServer
) -> None:
    page = visit(locked_server, expected=(FORBIDDEN,))
    sign_in(page)
    expect(page.locator("#write-notice")).to_contain_text("The weights of en-cot come first")
    page.get_by_role("button", name="Start from an example").click()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".stage")).to_have_text("It failed")
    expect(page.locator("#view-song .error")).to_contain_text("HF_HUB_OFFLINE")

    page.get_by_role("link", name="Models", exact=True).click()
    expect(page.get_by_role("heading", name="en-cot could not be loaded")).to_be_visible()
    expect(page.locator(".last-error")).to_contain_text("HF_HUB_OFFLINE")
    expect(page.get_by_text("only an administrator loads another model")).to_be_visible()
    assert not violations(page)

    page.get_by_role("link", name="Library").click()
    expect(page.get_by_text("The songs that this browser asked for")).to_be_visible()
    expect(page.get_by_role("listitem")).to_contain_text("The kettle hums, the window glows")
