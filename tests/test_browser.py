"""The demo as a person meets it, in a real Chromium on its real server."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from gradio.utils import get_upload_folder
from gradio_client import handle_file
from playwright.sync_api import Browser, Page, expect

from app import video
from app.comparison import mark_differences
from app.formats import as_json, as_srt, as_txt, as_vtt
from app.main import load_first_model
from app.models import Models
from app.rendering import UNSURE
from stages.asr.mel import SAMPLE_RATE
from stages.asr.recording import open_recording
from stages.asr.segments import Segment
from stages.asr.transcription import transcribe
from tests.support.browser import MISSING, OTHER_NAME, Found, chromium, find_browser
from tests.support.demo import PATIENCE, Demo, babbling_models, connect, long_recording, serve, spoken, until
from tests.support.material import ROOT
from tests.support.video import Reply, Site
from tests.support.video import serve as serve_videos

expect.set_options(timeout=1000 * PATIENCE)


LIGHTS = """() => {
    window.lit = [];
    window.times = [];
    new MutationObserver(() => {
        const word = document.querySelector("#left .now");
        if (!word) return;
        window.lit.push(word.innerText);
        window.times.push(document.querySelector("#player audio").currentTime);
    }).observe(document.querySelector("#left"), {attributes: true, subtree: true});
}"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    return spoken(tmp_path_factory.mktemp("speech"), 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny) -> Models:
    return babbling_models(tiny, tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture(scope="module")
def browser(clips) -> Iterator[Browser]:
    if not find_browser():
        pytest.skip(MISSING)
    with chromium(microphone=clips[3]) as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with serve_videos(tmp_path_factory.mktemp("authority")) as site:
        yield site


@pytest.fixture(scope="module")
def demo(tmp_path_factory, models, clips, site) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "example.wav").write_bytes(clips[2].read_bytes())
    fetch_audio = partial(video.fetch_audio, source=site.source)
    with serve(models, folder, fetch_audio, max_seconds=3600, max_megabytes=200, hosts=[OTHER_NAME]) as demo:
        yield demo


@pytest.fixture
def visit(demo, browser) -> Iterator[Callable[..., Page]]:
    """Call with what a browser tells of itself: the page, once it is ready."""
    contexts = []

    def call(**how: object) -> Page:
        contexts.append(browser.new_context(**{"locale": "en-GB", **how}))
        contexts[-1].set_default_timeout(1000 * PATIENCE)
        page = contexts[-1].new_page()
        page.goto(demo.url)
        expect(page.locator("#status p")).to_have_text(re.compile("The text will|Texten kommer"))
        return page

    yield call
    for context in contexts:
        context.close()


@pytest.fixture
def page(visit) -> Page:
    return visit()


def segments(demo: Demo, path: Path, name: str = "tuned") -> list[Segment]:
    """What a model hears in a file, without the demo."""
    with open_recording(path, 3600) as recording:
        return [each for _, each in transcribe(demo.models.load(name), recording.blocks()) if each]


def words(found: list[Segment]) -> str:
    return " ".join(segment.text for segment in found)


def drop(page: Page, path: Path) -> None:
    """Give the page a file, and wait until it is there."""
    page.get_by_role("tab", name="File", exact=True).click()
    page.locator("#upload input[type=file]").set_input_files(path)
    expect(page.locator("#upload")).to_contain_text(path.stem)


def transcribe_file(page: Page, path: Path) -> None:
    drop(page, path)
    page.locator("#transcribe-file").click()


def expect_text(page: Page, found: list[Segment], pane: str = "left") -> None:
    """Wait until a pane shows these segments, and no more is to come."""
    expect(page.locator("#status")).to_contain_text("Done")
    assert page.locator(f"#{pane} span").all_inner_texts() == [segment.text for segment in found]


def choose(page: Page, box: str, option: str) -> None:
    page.get_by_label(box, exact=True).click()
    page.get_by_role("option", name=option).click()


def record(page: Page, place: str, seconds: int = 2) -> None:
    """Speak into the microphone, which says the same over and over."""
    box = page.locator(place)
    box.get_by_role("button", name="Record").click()
    expect(box.locator("time.duration")).to_have_text(re.compile(rf"0:(0[{seconds}-9]|[1-5]\d)"))
    with page.expect_response(re.compile("/upload")):
        box.get_by_role("button", name="Stop").first.click()
    expect(box.get_by_role("button", name="Play", exact=True)).to_be_visible()


# Ways in


def test_a_file_becomes_text_with_times_and_files(demo, page, clips):
    found = segments(demo, clips[0])
    transcribe_file(page, clips[0])
    expect_text(page, found)
    assert page.locator("#left time").all_inner_texts() == [f"0:0{int(each.start)}" for each in found]
    for kind, form in {"txt": as_txt, "srt": as_srt, "vtt": as_vtt, "json": as_json}.items():
        with page.expect_download() as coming:
            page.get_by_role("button", name=kind, exact=True).click()
        assert coming.value.suggested_filename == f"{clips[0].stem}-tuned.{kind}"
        assert coming.value.path().read_text(encoding="utf-8") == form(found)


def test_the_microphone_gives_text_while_one_speaks_and_at_the_end_that_of_the_recording(demo, page):
    box = page.locator("#microphone")
    box.get_by_role("button", name="Record").click()
    expect(page.locator("#live p")).to_have_text(re.compile(r"\w"))
    box.get_by_role("button", name="Stop").first.click()
    expect(page.locator("#left span").first).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Done: 0:0")
    expect(page.locator("#live p")).to_be_empty()
    recorded = max(Path(get_upload_folder()).rglob("audio.w*"), key=lambda path: path.stat().st_mtime)
    expect_text(page, segments(demo, recorded))
    page.locator("#transcribe-speak").click()
    expect_text(page, segments(demo, recorded))


def test_nothing_is_heard_in_a_break_and_after_it_the_text_follows_again(page):
    said, calls = [], []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: calls.append(request) if request.url.endswith("/run/live") else None)
    kept = "constructor(context, name) { super(context, name); window.heard = context; }"
    page.add_init_script(f"AudioWorkletNode = class extends AudioWorkletNode {{ {kept} }}")
    page.reload()
    box = page.locator("#microphone")
    box.get_by_role("button", name="Record").click()
    expect(page.locator("#live p")).to_have_text(re.compile(r"\w"))
    box.get_by_role("button", name="pause").click()
    page.wait_for_function("heard.state === 'suspended'")
    box.get_by_role("button", name="Resume").click()
    paused = len(calls)
    until(lambda: page.wait_for_timeout(50) or len(calls) > paused + 1)
    box.get_by_role("button", name="Stop").first.click()
    expect(page.locator("#status")).to_contain_text("Done: 0:0")
    assert not said


def test_a_page_that_is_not_secure_copies_and_says_why_it_has_no_microphone(demo, page, clips):
    note = page.get_by_text("Browsers give the microphone only to pages of https")
    expect(note.first).to_be_hidden()
    page.goto(demo.url.replace("127.0.0.1", OTHER_NAME))
    expect(note.first).to_be_visible()
    transcribe_file(page, clips[0])
    expect_text(page, segments(demo, clips[0]))
    page.evaluate("document.addEventListener('copy', () => window.copied = getSelection().toString())")
    page.get_by_role("button", name="Copy").click()
    page.wait_for_function("() => window.copied !== undefined")
    assert page.evaluate("window.copied") == words(segments(demo, clips[0]))


def test_a_videos_address(demo, page, site, clips):
    site.replies["/talk.wav"] = Reply(clips[1].read_bytes(), "audio/wav")
    page.get_by_role("tab", name="Video").click()
    page.get_by_label("Address of a YouTube video").fill(f"{site.url}/talk.wav")
    page.locator("#transcribe-video").click()
    expect_text(page, segments(demo, clips[1]))


def test_an_example_is_one_click_from_its_text_and_what_was_said(demo, page, clips):
    page.get_by_role("button", name="example").click()
    found = segments(demo, clips[2])
    expect_text(page, found)
    said, _ = mark_differences("example", words(found))
    expect(page.locator("#reference")).to_contain_text("Said: example")
    assert page.locator("#reference mark").all_inner_texts() == [piece for piece, differs in said if differs]


def test_a_click_on_a_segment_plays_it_word_by_word(demo, page, clips):
    page.get_by_role("button", name="example").click()
    found = segments(demo, clips[2])
    expect_text(page, found)
    shown = [word for segment in found for word in segment.words]
    assert page.locator("#left i").all_inner_texts() == [word.text for word in shown]
    unsure = [word.text for word in shown if word.probability < UNSURE]
    assert page.locator("#left i.unsure").all_inner_texts() == unsure
    page.evaluate(LIGHTS)
    page.get_by_role("button", name=re.compile("^Play from")).last.click()
    page.wait_for_function("() => window.lit.length && document.querySelector('#player audio').paused")
    lit, times = page.evaluate("() => [window.lit, window.times]")
    assert set(lit) <= {word.text for word in found[-1].words} != set()
    assert found[-1].start - 0.01 <= times[0] <= times[-1] <= found[-1].end + 0.5


def test_what_is_edited_is_what_is_saved(demo, page, clips):
    transcribe_file(page, clips[0])
    found = segments(demo, clips[0])
    expect_text(page, found)
    page.locator("#edit-left").click()
    expect(page.locator("#edit-left")).to_have_text("Keep the changes")
    page.locator("#left span").first.fill("rättat <b> & klart")
    page.locator("#edit-left").click()
    expect(page.locator("#edit-left")).to_have_text("Edit")
    with page.expect_download() as coming:
        page.get_by_role("button", name="json", exact=True).click()
    edited = [replace(found[0], text="rättat <b> & klart", words=()), *found[1:]]
    assert coming.value.path().read_text(encoding="utf-8") == as_json(edited)
    page.get_by_role("tab", name="Improve it").click()
    page.get_by_role("button", name="Correct my last transcript").click()
    expect(page.locator("#said textarea")).to_have_value(words(edited))


# Models


def test_a_model_is_chosen_by_what_is_known_of_it(demo, page, clips):
    expect(page.get_by_text("Word error rate 12.3 % (95 % interval 11.0 to 14.5)")).to_be_visible()
    expect(page.locator("#notice")).to_contain_text("has heard nothing but a computer's voice")
    choose(page, "Model", "pretrained · not measured")
    expect(page.get_by_text("Not measured · trained on")).to_be_visible()
    transcribe_file(page, clips[0])
    expect_text(page, segments(demo, clips[0], "pretrained"))


def test_two_models_side_by_side_with_their_differences(demo, page, clips):
    choose(page, "Compare with", "pretrained")
    transcribe_file(page, clips[0])
    heard = [segments(demo, clips[0], name) for name in ("tuned", "pretrained")]
    for pane, found, pieces in zip(("left", "right"), heard, mark_differences(*map(words, heard)), strict=True):
        expect_text(page, found, pane)
        differing = " ".join(piece for piece, differs in pieces if differs)
        assert " ".join(page.locator(f"#{pane} mark").all_inner_texts()).split() == differing.split() != []


def test_the_page_begins_with_the_first_model_that_works(demo, visit, clips):
    weights = demo.models.source.root / "models/tuned/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert load_first_model(demo.models) == "pretrained"
    page = visit()
    box = page.get_by_label("Model", exact=True)
    expect(box).to_have_value(re.compile("^pretrained"))
    expect(page.locator("#notice")).to_contain_text(
        re.compile("tuned is not chosen, for it could not be loaded: .*tuned")
    )
    transcribe_file(page, clips[0])
    expect_text(page, segments(demo, clips[0], "pretrained"))
    weights.write_bytes(whole)
    choose(page, "Model", "tuned")
    expect(page.locator("#notice")).not_to_contain_text("not chosen")
    page.locator("#transcribe-file").click()
    expect(page.locator("#left h2")).to_have_text("tuned")
    expect_text(page, segments(demo, clips[0]))
    page.reload()
    expect(box).to_have_value(re.compile("^tuned"))


# What goes wrong


def test_what_is_no_sound_is_told_of_and_the_page_goes_on(demo, page, clips, tmp_path):
    (tmp_path / "notes.wav").write_text("inget ljud")
    transcribe_file(page, tmp_path / "notes.wav")
    told = page.get_by_test_id("toast-body")
    expect(told).to_contain_text("notes.wav is not a readable audio or video file")
    assert "Traceback" not in page.content() and "/tmp" not in told.inner_text()
    expect(page.locator("#status")).to_contain_text("This did not work")
    page.get_by_test_id("toast-close").click()
    page.locator("#upload").get_by_role("button", name="Clear").click()
    transcribe_file(page, clips[0])
    expect_text(page, segments(demo, clips[0]))


@pytest.mark.parametrize("way", ["speak", "file", "video"])
def test_nothing_given_is_told_of(page, way):
    page.get_by_role("tab", name={"speak": "Speak", "file": "File", "video": "Video"}[way], exact=True).click()
    page.locator(f"#transcribe-{way}").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("yet")


def test_silence_is_no_text(page, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(3 * SAMPLE_RATE), SAMPLE_RATE)
    transcribe_file(page, tmp_path / "silence.wav")
    expect(page.locator("#status")).to_contain_text("Nothing was said, or too quietly")
    expect(page.locator("#left span")).to_have_count(0)


def test_text_comes_while_it_is_decoded_and_stop_ends_the_work(demo, page, clips, tmp_path):
    transcribe_file(page, long_recording(clips, tmp_path / "hour.wav", 3000))
    expect(page.locator("#status")).to_contain_text(re.compile(r"0:\d\d of 50:00 transcribed"))
    expect(page.locator("#left span").first).to_be_visible()
    opened = [file.path for file in psutil.Process().open_files() if file.path.endswith("hour.wav")]
    assert opened
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped")
    expect(page.locator("#stop")).to_be_hidden()
    until(lambda: opened[0] not in [file.path for file in psutil.Process().open_files()])
    page.locator("#transcribe-file").click()
    expect(page.locator("#status")).to_contain_text(re.compile(r"0:\d\d of 50:00 transcribed"))
    page.locator("#examples button").click()  # takes the place of what is under way
    expect_text(page, segments(demo, clips[2]))
    until(lambda: opened[0] not in [file.path for file in psutil.Process().open_files()])


def test_whoever_waits_sees_the_place_and_can_leave(demo, page, clips, tmp_path):
    recording = long_recording(clips, tmp_path / "busy.wav", 3000)
    jobs = [connect(demo.url).submit(handle_file(recording), api_name="/transcribe") for _ in range(2)]
    for job in jobs:
        next(iter(job))
    transcribe_file(page, clips[0])
    expect(page.locator("#status")).to_contain_text(re.compile(r"Waiting: number 1 in the queue, about \d+ s"))
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped")
    jobs[0].cancel()
    jobs[1].cancel()
    until(lambda: not [file.path for file in psutil.Process().open_files() if file.path.endswith("busy.wav")])
    expect(page.locator("#left span")).to_have_count(0)


def test_a_closed_tab_ends_the_work(page, clips, tmp_path):
    transcribe_file(page, long_recording(clips, tmp_path / "closed.wav", 3000))
    expect(page.locator("#left span").first).to_be_visible()
    page.close()
    until(lambda: not [file.path for file in psutil.Process().open_files() if file.path.endswith("closed.wav")])


# Whoever looks, however


def test_the_page_asks_no_other_host_and_complains_of_nothing(demo, visit):
    page = visit()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.reload()
    expect(page.locator("#status p")).to_have_text("The text will appear here.")
    assert asked and all(url.startswith((demo.url, "data:", "blob:")) for url in asked)
    assert not said


FOREIGN = """async (url) => {
    const tried = async (path, body) => {
        try {
            const answer = await fetch(url + path, {method: body ? "POST" : "GET", body});
            return [answer.status, await answer.text()];
        } catch (error) { return "blocked"; }
    };
    const form = new FormData();
    form.append("files", new Blob(["RIFF"]), "foreign.wav");
    await fetch(url + "gradio_api/upload", {method: "POST", mode: "no-cors", body: form});
    const frame = document.createElement("iframe");
    frame.src = url;
    document.body.append(frame);
    await new Promise(loaded => frame.onload = loaded);
    const join = JSON.stringify({data: [], fn_index: 0, session_hash: "a"});
    return [await tried("gradio_api/upload", form), await tried("gradio_api/queue/join", join), await tried("config")];
}"""


def test_a_foreign_page_cannot_upload_call_read_or_frame(demo, page, site):
    site.replies["/foreign.html"] = Reply(b"<title>x</title><body>", "text/html")
    page.goto(f"{site.url}/foreign.html")
    answers = page.evaluate(FOREIGN, demo.url)
    assert answers == [[403, "Another page may not use this one."]] * 3  # all that it may read
    assert not list(Path(get_upload_folder()).rglob("foreign*"))
    framed = [frame for frame in page.frames if frame.parent_frame]
    assert [frame.url for frame in framed] == ["chrome-error://chromewebdata/"]
    page.goto(demo.url.replace("127.0.0.1", "foreign.localhost"))  # a name that leads here, and none of the page's own
    expect(page.locator("body")).to_have_text(re.compile("does not go by the name 'foreign.localhost'"))


def test_each_language_has_its_page(visit, tmp_path):
    english, swedish = visit(locale="en-US"), visit(locale="sv-SE")
    for page, label, tab, details, notice in (
        (english, "Model", "Improve it", "Word error rate 12.3 %", "expect nonsense when you speak"),
        (swedish, "Modell", "Förbättra", "Ordfel 12,3 %", "vänta dig nonsens när du talar"),
    ):
        expect(page.get_by_label(label, exact=True)).to_be_visible()
        expect(page.get_by_role("tab", name=tab)).to_be_visible()
        expect(page.get_by_text(details)).to_be_visible()
        expect(page.locator("#notice")).to_contain_text(notice)
        assert "viska_" not in page.locator("body").inner_text()
    expect(swedish.get_by_label("Modell", exact=True)).to_have_value("tuned · ordfel 12,3 %")
    expect(swedish.get_by_text("tränad på syntetiskt tal, 3\xa0000 klipp")).to_be_visible()
    swedish.locator("#transcribe-speak").click()
    expect(swedish.get_by_test_id("toast-body")).to_contain_text("Det finns ingen inspelning än")
    swedish.get_by_test_id("toast-close").click()
    (tmp_path / "notes.wav").write_text("inget ljud")
    swedish.get_by_role("tab", name="Fil", exact=True).click()
    swedish.locator("#upload input[type=file]").set_input_files(tmp_path / "notes.wav")
    expect(swedish.locator("#upload")).to_contain_text("notes")
    swedish.locator("#transcribe-file").click()
    told = "notes.wav är ingen läsbar ljud- eller videofil: innehållet är ogiltigt; gör om den"
    expect(swedish.get_by_test_id("toast-body")).to_contain_text(told)
    swedish.get_by_test_id("toast-close").click()
    swedish.locator("#upload").get_by_role("button", name="Rensa").click()
    with (tmp_path / "large.wav").open("wb") as large:
        large.truncate(200_000_001)
    swedish.locator("#upload input[type=file]").set_input_files(tmp_path / "large.wav")
    told = 'Filen är för stor, över 190.7 Mb: "large.wav"'  # gradio's own words
    expect(swedish.get_by_test_id("toast-body")).to_contain_text(told)


def test_a_telephone_needs_no_sideways_scrolling(visit, clips):
    page = visit(viewport={"width": 375, "height": 700}, is_mobile=True, has_touch=True)
    width = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    assert max(page.evaluate(width)) <= 375
    choose(page, "Compare with", "pretrained")
    transcribe_file(page, clips[0])
    expect(page.locator("#right span").first).to_be_visible()
    assert max(page.evaluate(width)) <= 375
    page.get_by_role("tab", name="Improve it").click()
    expect(page.locator("#save")).to_be_visible()
    assert max(page.evaluate(width)) <= 375


def test_dark_and_light_are_the_systems(visit):
    for scheme, dark in (("dark", True), ("light", False)):
        page = visit(color_scheme=scheme)
        colours = page.evaluate(
            "[document.body, document.querySelector('#status p')].map(getComputedStyle).flatMap("
            "(s, i) => i ? s.color : s.backgroundColor)"
        )
        background, text = (sum(map(float, re.findall(r"[\d.]+", colour)[:3])) for colour in colours)
        assert (background < text) == dark and abs(background - text) > 300


def tab_to(page: Page, name: str, times: int = 1) -> list[str]:
    """Press Tab until what is called so has the focus; the names on the way, each of which shows its focus."""
    names, styles = [], []
    while names.count(name) < times:
        page.keyboard.press("Tab")
        labels = "e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || e.placeholder || ''"
        names.append(page.evaluate(f"(e => {labels})(document.activeElement)").strip())
        styles.append(page.evaluate("(s => s.outlineStyle + s.boxShadow)(getComputedStyle(document.activeElement))"))
        assert len(names) < 40, names
    assert all(style != "nonenone" for style in styles), dict(zip(names, styles, strict=True))
    return names


def test_the_keyboard_is_enough(demo, page, clips, tmp_path):
    drop(page, long_recording(clips, tmp_path / "hour.wav", 3000))
    page.locator("#title").click()
    names = tab_to(page, "Transcribe", times=2)  # the tab, and the button
    assert names.index("Model") < names.index("Compare with") < names.index("File")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("of 50:00 transcribed")
    tab_to(page, "Stop")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Stopped")
    page.locator("#upload").get_by_role("button", name="Clear").focus()
    page.keyboard.press("Enter")
    drop(page, clips[0])
    page.locator("#title").click()
    tab_to(page, "Transcribe", times=2)
    page.keyboard.press("Enter")
    expect_text(page, segments(demo, clips[0]))
    assert tab_to(page, "json")[-6:] == ["Copy", "Edit", "txt", "srt", "vtt", "json"]
    page.locator("#title").click()
    tab_to(page, "Improve it")
    page.keyboard.press("Enter")
    tab_to(page, "Save the recording")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    expect(page.get_by_label("I have the right to share this recording")).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("toast-body")).to_contain_text("record something first")
    tab_to(page, "Close")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


def barriers(page: Page) -> list[str]:
    """What axe-core finds serious or critical on the page as it is, and in its other colours."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(AXE_SCRIPT)
    found = page.evaluate(
        """async () => {
            const settle = () => Promise.all(document.getAnimations().map(each => each.finished.catch(() => 0)));
            await settle();
            const all = (await axe.run({resultTypes: ["violations"]})).violations;
            document.body.classList.toggle("dark");
            await settle();
            const colours = (await axe.run({resultTypes: ["violations"], runOnly: ["color-contrast"]})).violations;
            document.body.classList.toggle("dark");
            return [...all, ...colours];
        }"""
    )
    assert "page-has-heading-one" not in [each["id"] for each in found]
    return [
        f"{each['id']}: {node['html'][:200]} {[check['message'] for check in node['any']]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


TELEPHONE = {"viewport": {"width": 375, "height": 700}}
VISITORS = [
    ("Compare with", "File", "Improve it", {"color_scheme": "light"}),
    ("Jämför med", "Fil", "Förbättra", {"color_scheme": "dark", "locale": "sv-SE"} | TELEPHONE),
]


@pytest.mark.parametrize(("compare", "file", "improve", "visitor"), VISITORS, ids=["English", "Swedish"])
def test_nothing_bars_who_cannot_see_or_point(visit, clips, compare, file, improve, visitor):
    page = visit(**visitor)
    assert not barriers(page)
    choose(page, compare, "pretrained")
    page.get_by_role("tab", name=file, exact=True).click()
    page.locator("#upload input[type=file]").set_input_files(clips[0])
    expect(page.locator("#upload")).to_contain_text(clips[0].stem)
    page.locator("#transcribe-file").click()
    expect(page.locator("#status")).to_contain_text(re.compile("Done|Klart"))
    page.get_by_role("tab", name="Video").click()
    page.locator("#transcribe-video").click()
    expect(page.get_by_test_id("toast-body")).to_have_css("opacity", "1")  # it fades in
    assert not barriers(page)
    page.get_by_test_id("toast-close").click()
    page.get_by_role("tab", name=file, exact=True).click()
    assert not barriers(page)
    page.get_by_role("tab", name=improve).click()
    expect(page.locator("#save")).to_be_visible()
    assert not barriers(page)


def test_one_persons_text_is_not_anothers(visit, clips):
    one, other = visit(), visit()
    transcribe_file(one, clips[0])
    expect(one.locator("#left span").first).to_be_visible()
    other.reload()
    other.get_by_role("tab", name="Improve it").click()
    other.get_by_role("button", name="Correct my last transcript").click()
    expect(other.get_by_test_id("toast-body")).to_contain_text("There is nothing to correct yet")


# Improve it


def rows(demo: Demo) -> list[dict]:
    table = demo.corpus / "recordings.tsv"
    return list(csv.DictReader(table.open(encoding="utf-8"), delimiter="\t")) if table.exists() else []


def shown_sentence(page: Page) -> str:
    """What is to be read aloud, once it is there: it comes after the page's other parts."""
    said = page.locator("#said textarea")
    expect(said).not_to_have_value("")
    return said.input_value()


def test_a_sentence_read_aloud_is_saved_after_consent(demo, page):
    page.get_by_role("tab", name="Improve it").click()
    sentence = shown_sentence(page)
    record(page, "#recording")
    page.locator("#save").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("tick the box")
    before = rows(demo)
    page.get_by_label("I have the right to share this recording").check()
    page.locator("#save").click()
    expect(page.locator("#answer")).to_contain_text("Saved, thank you")
    (row,) = rows(demo)[len(before) :]
    assert row["text"] == sentence and (demo.corpus / row["path"]).stat().st_size > 1000
    expect(page.locator("#said textarea")).not_to_have_value(sentence)
    page.reload()
    page.get_by_role("tab", name="Improve it").click()
    shown_sentence(page)
    page.get_by_label("I have the right to share this recording").check()
    record(page, "#recording")
    page.locator("#save").click()
    expect(page.locator("#answer")).to_contain_text("Saved, thank you")
    assert rows(demo)[-1]["speaker"] == row["speaker"]


def test_a_transcript_is_corrected_and_saved(demo, page, clips):
    transcribe_file(page, clips[1])
    expect(page.locator("#status")).to_contain_text("Done")
    page.get_by_role("tab", name="Improve it").click()
    page.get_by_role("button", name="Correct my last transcript").click()
    expect(page.locator("#said textarea")).to_have_value(words(segments(demo, clips[1])))
    page.locator("#said textarea").fill("det som verkligen sades")
    page.get_by_label("I have the right to share this recording").check()
    page.locator("#save").click()
    expect(page.locator("#answer")).to_contain_text("Saved, thank you")
    assert rows(demo)[-1]["text"] == "det som verkligen sades"
    assert (demo.corpus / rows(demo)[-1]["path"]).read_bytes() == clips[1].read_bytes()


def test_there_is_no_improving_without_a_folder(models, browser, demo, tmp_path):
    with serve(models, tmp_path, improve=False) as closed:
        page = browser.new_page(locale="en-GB")
        page.goto(closed.url)
        expect(page.get_by_role("tab", name="Transcribe")).to_be_visible()
        expect(page.get_by_role("tab", name="Improve it")).to_have_count(0)
        page.close()


# The browser itself


def program(path: Path, says: str, status: int = 0) -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    path.chmod(0o755)


def test_a_browser_counts_where_it_starts_and_sees_the_tests_files(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path / "chromium", "Chromium 1.2", status=1)
    program(tmp_path / "chromium-browser", "Chromium 1.2 snap")
    program(tmp_path / "google-chrome", "Google Chrome 1.2")
    program(tmp_path / "microsoft-edge", "Microsoft Edge 1.2")
    assert find_browser() == Found(str(tmp_path / "google-chrome"), "Google Chrome 1.2")


@pytest.mark.skipif(sys.platform == "darwin", reason="applications are found wherever PATH leads")
def test_where_no_browser_can_be_had_the_command_says_so(tmp_path):
    env = {"PLAYWRIGHT_BROWSERS_PATH": str(tmp_path), "PLAYWRIGHT_DOWNLOAD_HOST": "http://127.0.0.1:9"}
    env = os.environ | env | {"PATH": str(tmp_path)}  # where there is neither a browser nor apt-get
    for required, status in (("required", 1), ("", 0)):
        command = [sys.executable, "-m", "tests.support.browser"]
        done = subprocess.run(command, env=env | {"VISKA_BROWSER": required}, cwd=ROOT, capture_output=True, text=True)
        tried, failed, skipped = done.stdout.splitlines()
        assert tried == "no Chromium or Chrome was found: trying `python -m playwright install chromium`"
        assert "which failed" in failed and MISSING in skipped and done.returncode == status, done
