"""The studio's page forgives a mistake, and can be used without a mouse."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.studio.conftest import OpenStudio
from tests.support.real_server import RealServer

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WORDS = "[verse]\nPaper boats along the rain"
STRUCK = re.compile("line-through")


def make_song(server: RealServer, words: str = WORDS) -> str:
    """Generate a song of a second, and return its id."""
    tracks = ["mix", "vocal", "instrumental"]
    status, prediction = server.generate(lyrics=words, genres="folk", max_new_tokens=100, tracks=tracks)
    assert status == 200
    return str(prediction["job_id"])


def write(page: Page) -> None:
    page.get_by_label("Lyrics", exact=True).fill(WORDS)
    page.get_by_role("button", name="folk", exact=True).click()


@pytest.mark.parametrize("replaces", ["New page", "Start from an example"])
def test_a_page_that_is_replaced_can_be_brought_back(visit: OpenStudio, server: RealServer, replaces: str) -> None:
    page = visit(server)
    write(page)
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name=replaces).click()
    lyrics, undo = page.get_by_label("Lyrics", exact=True), page.get_by_role("button", name="Undo")
    expect(lyrics).not_to_have_value(WORDS)
    page.get_by_role("button", name="New page").click()  # it keeps the page that somebody wrote
    undo.click()
    expect(lyrics).to_have_value(WORDS)
    expect(page.locator(".token")).to_have_text(["folk×"])
    expect(page.get_by_label("Seed")).to_have_value("7")
    expect(undo).to_be_hidden()
    page.reload()
    expect(lyrics).to_have_value(WORDS)


def test_nothing_is_undone_once_something_is_written(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    undo = page.get_by_role("button", name="Undo")
    page.get_by_role("button", name="New page").click()
    expect(undo).to_be_hidden()  # there was nothing
    write(page)
    page.get_by_role("button", name="New page").click()
    expect(undo).to_be_visible()
    page.get_by_label("Lyrics", exact=True).press_sequentially("A")
    expect(undo).to_be_hidden()


def test_what_is_missing_is_said_in_plain_words(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    page.get_by_label("Takes").fill("9")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#error-lyrics")).to_have_text("Write some words first.")
    expect(page.locator("#error-genres")).to_have_text("Pick at least one tag.")
    expect(page.locator("#error-options")).to_have_text("Takes: a whole number from 1 to 8.")
    expect(page.get_by_label("Lyrics", exact=True)).to_be_focused()


def test_a_note_names_the_length_as_the_page_does(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    write(page)
    page.get_by_label("Length of a section").fill("100")
    expect(page.get_by_role("list", name="Notes on the lyrics")).to_contain_text("raise “Length of a section”")


def test_ctrl_enter_in_the_lyrics_generates(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    write(page)
    page.get_by_label("Length of a section").fill("100")
    page.get_by_label("Lyrics", exact=True).press("Control+Enter")
    page.wait_for_url(re.compile("#/song/"))


def test_the_tags_are_one_stop_of_the_tab_key_with_arrow_keys_inside(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    page.get_by_role("tab", name="Genre").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="folk", exact=True)).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    pop = page.get_by_role("button", name="pop", exact=True)
    expect(pop).to_be_focused()
    expect(pop).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("End")
    expect(page.get_by_role("button", name="mandopop", exact=True)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name="folk", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#tag-chips button:focus")).to_have_count(0)
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="folk", exact=True)).to_be_focused()


def test_a_deletion_in_the_library_leaves_the_focus_at_the_next_song(visit: OpenStudio, server: RealServer) -> None:
    kept, deleted = make_song(server, "[verse]\nAn old one"), make_song(server, "[verse]\nA new one")
    page = visit(server, "library")
    row = page.get_by_role("listitem").filter(has=page.locator(f'[href="#/song/{deleted}"]'))
    row.get_by_role("button", name="Delete").press("Enter")
    row.get_by_role("button", name="Sure?").press("Enter")
    expect(row).to_have_count(0)
    expect(page.locator(f'[href="#/song/{kept}"]')).to_be_focused()


def test_the_tracks_that_are_not_heard_are_struck_through(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server, f"song/{make_song(server)}")
    expect(page.locator(".track-name")).to_have_count(2)
    vocal, instrumental = page.locator(".track-name").all()
    page.get_by_role("button", name="Mute vocal").click()
    expect(vocal).to_have_css("text-decoration", STRUCK)
    page.get_by_role("button", name="Solo vocal").click()  # it wins over the mute
    expect(vocal).not_to_have_css("text-decoration", STRUCK)
    expect(instrumental).to_have_css("text-decoration", STRUCK)
    page.get_by_role("button", name="Solo vocal").click()
    expect(instrumental).not_to_have_css("text-decoration", STRUCK)


def test_an_unknown_song_leads_to_the_library(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server, "song/unknown", expected=("404",))
    expect(page.get_by_text("This song is not here any more")).to_be_visible()
    expect(page.get_by_role("slider")).to_have_count(0)
    page.get_by_role("link", name="Go to the library").click()
    expect(page.get_by_role("heading", name="Library")).to_be_visible()
