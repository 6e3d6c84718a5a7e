"""The studio as somebody with a browser meets it: from writing to listening to deleting."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Page, expect

from tests.studio.conftest import WAIT_MS, OpenStudio, violations
from tests.support.real_server import RealServer
from tests.support.songs import hear, tone

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SHORT = "[verse]\nPaper boats along the rain\n\n[chorus]\nCarry me home"
ONE_SECOND, TWENTY_SECONDS, A_MINUTE = "100", "2000", "6000"  # of a section, in tokens
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def write(page: Page, lyrics: str = SHORT, length: str = ONE_SECOND, takes: int = 1) -> None:
    """Write a song."""
    page.get_by_label("Lyrics", exact=True).fill(lyrics)
    tags = page.get_by_label("Add a tag of your own")
    tags.fill("folk, female")
    tags.press("Enter")
    page.get_by_label("Length of a section").fill(length)
    page.get_by_label("Takes").fill(str(takes))


def generate(page: Page) -> str:
    """Generate what is written, and return the job's id."""
    page.get_by_role("button", name="Generate").click()
    page.wait_for_url(re.compile("#/song/"))
    return page.url.rpartition("/")[2]


def wait_until_done(page: Page) -> None:
    expect(page.get_by_role("group", name="Tracks")).to_be_visible(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def song(server: RealServer) -> str:
    """The id of a finished song of 20 seconds."""
    tracks = ["mix", "vocal", "instrumental"]
    status, prediction = server.generate(
        lyrics=SHORT, genres="folk calm female", max_new_tokens=1000, seed=7, tracks=tracks
    )
    assert status == 200
    return str(prediction["job_id"])


def test_a_song_is_written_generated_heard_opened_again_and_deleted(
    visit: OpenStudio, tiny_server: RealServer, tmp_path: Path
) -> None:
    page = visit(tiny_server)
    expect(page.get_by_text("cannot sing words")).to_be_visible()
    write(page)
    expect(page.locator("#lyrics-sum")).to_have_text("2 sections · about 0:02")
    job_id = generate(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("Paper boats along the rain")
    wait_until_done(page)
    assert [mark.text_content() for mark in page.get_by_role("group", name="Sections").get_by_role("button").all()] == [
        "verse",
        "chorus",
    ]
    clock = page.locator(".clock")
    expect(clock).to_have_text(re.compile(r"0:0[1-9] / 0:0\d"))  # it has begun to play by itself

    with page.expect_download() as download:
        page.get_by_role("link", name="Download vocal").click()
    file = tmp_path / "vocal.mp3"
    download.value.save_as(file)
    assert hear(file.read_bytes()).seconds > 1
    page.get_by_label("Format of the downloads").select_option("ogg")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download mix, ogg").click()
    download.value.save_as(tmp_path / "mix.ogg")
    assert soundfile.info(tmp_path / "mix.ogg").format == "OGG"

    page.get_by_role("button", name="Open in the editor").click()
    expect(page.get_by_label("Lyrics", exact=True)).to_have_value(SHORT)
    page.get_by_role("link", name="Library").click()
    row = page.get_by_role("listitem").filter(has=page.locator(f'[href="#/song/{job_id}"]'))
    expect(row).to_contain_text("folk · female")
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="Sure?").click()
    expect(row).to_have_count(0)
    assert tiny_server.ask(f"/jobs/{job_id}")[0] == 404


def test_the_tracks_are_heard_apart_and_the_position_follows_the_keys(
    visit: OpenStudio, server: RealServer, song: str
) -> None:
    page = visit(server, f"song/{song}")
    wait_until_done(page)
    mute = page.get_by_role("button", name="Mute vocal")
    mute.click()
    expect(mute).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Solo instrumental").click()
    wave = page.get_by_role("slider", name="Position in the song")
    wave.press("Home")
    expect(wave).to_have_attribute("aria-valuenow", re.compile("^[01]$"))
    wave.press("ArrowRight")
    expect(wave).to_have_attribute("aria-valuenow", re.compile("^[567]$"))
    page.get_by_role("button", name="chorus").click()
    expect(wave).to_have_attribute("aria-valuenow", "10")
    expect(page.locator(".stanza.here")).to_contain_text("Carry me home")
    box = wave.bounding_box()
    assert box
    wave.click(position={"x": box["width"] * 0.1, "y": box["height"] / 2})
    expect(wave).to_have_attribute("aria-valuenow", re.compile("^[012]$"))


def test_words_are_marked_as_they_are_read_with_notes_beside_their_lines(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    lyrics = page.get_by_label("Lyrics", exact=True)
    lyrics.fill("[主歌1]\n山\n\n[whisper]\nHush")
    expect(page.locator(".marks .tag")).to_have_count(2)
    expect(page.locator(".marks .tag").first).to_contain_text("read as verse 1")
    note = page.get_by_role("list", name="Notes on the lyrics").get_by_role("listitem")
    expect(note).to_contain_text("[whisper] is not a section that YuE is known to understand")
    note.get_by_role("button", name="Line 4").click()
    assert lyrics.evaluate("area => area.value.slice(area.selectionStart, area.selectionEnd)") == "[whisper]"
    lyrics.fill("Hush\n[verse]\nA")
    expect(note).to_contain_text("no text before the first")


def test_a_reload_loses_neither_the_draft_nor_a_song_in_the_making(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    write(page, length=TWENTY_SECONDS, takes=2)
    page.get_by_label("Seed").fill("7")
    page.get_by_role("radio", name="FLAC").check()
    page.locator(".drop input").set_input_files(
        files=[{"name": "tone.wav", "mimeType": "audio/wav", "buffer": tone(3)}]
    )
    expect(page.get_by_role("img", name="Waveform of tone.wav")).to_be_visible()
    page.get_by_label("To second").fill("2")
    page.reload()
    expect(page.get_by_label("Lyrics", exact=True)).to_have_value(SHORT)
    expect(page.locator(".token")).to_have_text(["folk×", "female×"])
    expect(page.get_by_label("Takes")).to_have_value("2")
    expect(page.get_by_role("radio", name="FLAC")).to_be_checked()
    expect(page.get_by_role("img", name="Waveform of tone.wav")).to_be_visible()
    expect(page.get_by_label("To second")).to_have_value("2")

    job_id = generate(page)
    expect(page.locator(".stage")).to_contain_text("Composing")
    page.reload()
    wait_until_done(page)
    page.get_by_role("navigation", name="Takes").get_by_role("link", name="Take 2").click()
    wait_until_done(page)
    other = page.url.rpartition("/")[2]
    requests = [server.ask(f"/jobs/{each}")[1]["request"] for each in (job_id, other)]
    assert [request["seed"] for request in requests] == [7, 8]
    assert all(request["reference"]["end_seconds"] == 2 for request in requests)


def test_a_song_plays_while_it_is_generated_and_its_waveform_grows(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    write(page, length=TWENTY_SECONDS)
    with page.expect_request(re.compile("/stream/mix.mp3")):
        generate(page)
    expect(page.locator(".clock")).to_have_text(re.compile(r"0:0[1-9] / 0:[0123]\d"))
    expect(page.get_by_role("progressbar", name="Progress of the song")).to_be_visible()
    expect(page.get_by_role("group", name="Sections").get_by_role("button")).to_have_count(2)
    wait_until_done(page)
    expect(page.locator(".clock")).to_have_text(re.compile(r"/ 0:40$"))


def test_a_running_song_can_be_cancelled_and_then_deleted(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server)
    write(page, length=A_MINUTE)
    generate(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".stage")).to_have_text("Cancelled")
    expect(page.locator("#view-song .error")).to_be_hidden()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Really delete it?").click()
    expect(page.get_by_role("heading", name="Library")).to_be_visible()


def test_errors_are_shown_beside_their_fields(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server, expected=("400",))
    page.get_by_label("Lyrics", exact=True).fill(SHORT)
    page.get_by_label("Sections", exact=True).fill("0")
    expect(page.locator("#error-options")).to_have_text("Sections: a whole number from 1 to 100.")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#error-genres")).to_have_text("Pick at least one tag.")
    expect(page.locator("#error-options")).to_have_text("Sections: a whole number from 1 to 100.")
    expect(page.get_by_label("Add a tag of your own")).to_be_focused()


def test_a_server_that_goes_away_is_waited_for(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server, expected=("ERR_INTERNET_DISCONNECTED",))
    write(page)
    page.context.set_offline(True)
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text("The server does not answer")).to_be_visible()
    expect(page.locator("#model-pill")).to_have_text("tiny · server away")
    page.context.set_offline(False)
    expect(page.get_by_text("The server does not answer")).to_be_hidden()
    wait_until_done(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_any_view(visit: OpenStudio, server: RealServer, song: str, scheme: str) -> None:
    page = visit(server, color_scheme=scheme)
    page.get_by_role("button", name="Start from an example").click()
    page.get_by_label("Sections", exact=True).fill("1")
    expect(page.locator(".marks .left")).to_have_count(1)
    for summary in page.locator("#view-write summary").all():
        summary.click()
    assert not violations(page)
    page.goto(f"{server.url}/#/song/{song}")
    wait_until_done(page)
    assert not violations(page)
    page.get_by_role("link", name="Library").click()
    expect(page.locator(".row").first).to_be_visible()
    assert not violations(page)
    page.get_by_role("link", name="Models", exact=True).click()
    expect(page.get_by_role("heading", name="tiny is ready")).to_be_visible()
    assert not violations(page)


def test_a_phone_shows_every_view_without_scrolling_sideways(visit: OpenStudio, server: RealServer, song: str) -> None:
    page = visit(server, **PHONE)
    write(page, lyrics=f"[whisper]\n{'long ' * 40}\n\n" + 40 * "[verse]\nA\n")
    expect(page.get_by_role("list", name="Notes on the lyrics")).to_contain_text("whisper")
    for view in ("write", f"song/{song}", "library", "models"):
        page.goto(f"{server.url}/#/{view}")
        expect(page.locator("main > section:not([hidden]) h1")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, view


def test_the_library_shows_more_songs_page_by_page(visit: OpenStudio, server: RealServer) -> None:
    song = {"lyrics": "[verse]\nAgain", "genres": "folk", "max_new_tokens": 100}
    for _ in range(3):
        assert server.ask("/predict", {"instances": [song] * 8, "parameters": {"wait_seconds": 0}})[0] == 200
    page = visit(server, "library")
    expect(page.locator(".row")).to_have_count(20)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".row")).not_to_have_count(20)
    assert page.locator(".row").count() >= 24


def test_the_theme_can_be_chosen_and_is_kept(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Theme: as the system").click()
    page.get_by_role("button", name="Theme: light").click()
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(background) != light


def test_the_curl_line_makes_the_same_song_again(visit: OpenStudio, server: RealServer) -> None:
    page = visit(server, permissions=["clipboard-read", "clipboard-write"])
    write(page, lyrics="[verse]\nIt's o'clock")
    job_id = generate(page)
    page.get_by_role("button", name="Copy as a curl line").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    line = page.evaluate("navigator.clipboard.readText()")
    body = json.loads(re.search(r"-d '(.*)'$", line, re.DOTALL)[1].replace("'\\''", "'"))  # type: ignore[index]
    first = server.ask(f"/jobs/{job_id}")[1]["request"]
    again = server.ask("/predict", {**body, "parameters": {"wait_seconds": 0}})[1]["predictions"][0]["request"]
    assert {**again, "tracks": None} == {**first, "tracks": None}
