"""``python -m tools.report``: its table, and its page in a real Chromium, of revisions of a real Git and DVC."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dvc.repo import Repo
from playwright.sync_api import Browser, Locator, Page, expect
from ruamel.yaml import YAML

from stages.asr.clips import Drop, write_rows
from stages.asr.shards import Entry, write_shard
from stages.runtime.errors import UserError
from stages.runtime.files import write_json, write_table, write_text
from tests.support.browser import MISSING, chromium, find_browser
from tests.support.material import ROOT, speech, write_raw
from tests.support.pinned import isolate
from tests.support.repository import commit, run
from tools.report.__main__ import main
from tools.report.sentences import MOST, MOST_WORDS, Alignment, Piece, Spoken, fitting

expect.set_options(timeout=60_000)

SCORES = {"wer": 50.0, "wer_low": 45.0, "wer_high": 55.0, "cer": 20.0}
BEYOND = {"wer_full_window": 51.0, "wer_stressed": 70.0}
BEYOND_DETAILS = {"wer_by": "speaker", "speakers": 9, "wer_full_window_low": 44.0, "wer_full_window_high": 56.0}
BEYOND_DETAILS |= {"wer_full_window_by": "clip", "conditions": 9, "condition_clips": 100}
BEYOND_DETAILS |= {"wer_new_speakers": 60.0, "wer_new_speakers_low": 40.0, "wer_new_speakers_high": 80.0}
BEYOND_DETAILS |= {"wer_new_speakers_by": "speaker", "new_speakers": 4}
DETAILS = {"wer_raw": 60.0, "substitutions": 16, "deletions": 3, "insertions": 1, "words": 40, "clips": 7}
SPLITS = ("train", "validation", "test")
MAP = """\
stages:
  download: {cmd: "false", params: [download], outs: [data/dropped.tsv]}
  featurize:
    foreach: [train, test]
    do: {cmd: "false", params: [download], outs: ["data/features/${item}"]}
  pretrained: {cmd: "false", params: [whisper], outs: [models/pretrained]}
  train: {cmd: "false", params: [train], deps: [models/pretrained], outs: [models/tuned, data/dropped-train.tsv]}
  evaluate:
    foreach: [pretrained, tuned]
    do:
      cmd: "false"
      deps: [data/features/test, "models/${item}"]
      outs: ["data/transcripts/${item}.tsv"]
"""
PARAMS = """\
whisper: {{base: openai/whisper-small, language: sv}}
download: {{corpus: folder, folder: {{path: recordings, seed: 1}}, synthetic: {{seed: 1}}}}
train: {{learning_rate: {}}}
"""
SAID = ("vi köper tolv ägg", "åsa bor i örebro", "båten går klockan åtta", "jag dansar på lördag")
BASE = ("vi köper", "åsa bor", "båten", "jag")
FEW = ("vi köper elva ägg", "åsa bor i örebro", "båten går nu klockan åtta", "jag dansar lördag")
CLIPS = 28
HOSTILE = "<img src=http://example.com/x.png onerror=alert(1)>"


@pytest.fixture
def metrics(tmp_path):
    """What a run leaves, in a folder without Git."""
    write_metrics(tmp_path, SCORES | {"wer": 100.0, "untrained": True})
    return tmp_path


def write_metrics(folder: Path, before: dict, after: dict = SCORES) -> None:
    files = {
        "evaluate/pretrained": before,
        "evaluate/tuned": after,
        "train": {"validation_wer": 48.0, "best_step": 3, "steps": 4},
        "details/evaluate/pretrained": DETAILS | {"dropped": {"no words": 1}},
        "details/evaluate/tuned": DETAILS | {"dropped": {"no words": 1}},
        "details/train": {"dropped": {"label too long": 1}},
        "details/download": {split: {"speakers": 4, "dropped": {"too short": 2}} for split in SPLITS},
    }
    files |= {f"details/featurize/{split}": {"clips": 20, "seconds": 90.0, "dropped": {}} for split in SPLITS}
    files["details/featurize/train"]["dropped"] = {"cannot be decoded": 1}
    for name, values in files.items():
        write_json(folder / f"metrics/{name}.json", values)


# The table


def report(folder):
    command = [sys.executable, "-m", "tools.report", "--root", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def test_table_shows_before_and_after(metrics):
    lines = report(metrics).stdout.splitlines()
    assert lines[0].split()[2:4] == ["untrained", "tuned"]
    assert lines[1].split() == ["WER", "100.0", "50.0", "45.0", "to", "55.0"]
    assert not [line for line in lines if "voices" in line]  # neither model has those scores
    assert [line.split()[-2:] for line in lines if "raw" in line] == [["60.0", "60.0"]]


def test_each_rate_stands_with_the_interval_it_has_and_the_speakers_it_rests_on(metrics):
    for name, values in (("evaluate/tuned", SCORES | BEYOND), ("details/evaluate/tuned", DETAILS | BEYOND_DETAILS)):
        write_json(metrics / f"metrics/{name}.json", values | {"dropped": {}})
    rows = {line[:20].strip(): line[20:].split(maxsplit=2) for line in report(metrics).stdout.splitlines()[1:6]}
    assert rows == {
        "WER": ["100.0", "50.0", "45.0 to 55.0 by speaker, 9 speakers"],
        "WER, full window": ["51.0", "44.0", "to 56.0 by clip"],
        "WER, stressed": ["70.0", "mean", "of 9 conditions, 100 clips"],
        "WER, new voices": ["60.0", "40.0", "to 80.0 by speaker, 4 speakers"],
        "WER, raw text": ["60.0", "60.0"],
    }


def test_counts_and_what_was_dropped_stand_below_the_table(metrics):
    lines = report(metrics).stdout.splitlines()
    assert lines[4:7] == [
        "7 clips, 40 words: substitutions 16, deletions 3, insertions 1",
        "Trained on 20 clips, 2 min: validation WER 48.0 % at step 3 of 4",
        "Dropped: 6 too short, 1 cannot be decoded, 1 label too long, 1 no words",
    ]


def test_weights_that_no_step_had_are_named(metrics):
    write_json(metrics / "metrics/details/train.json", {"dropped": {}, "weights": "mean of steps 2, 3, 4"})
    assert "validation WER 48.0 % (mean of steps 2, 3, 4)\n" in report(metrics).stdout


@pytest.mark.parametrize("name", ["evaluate/tuned", "train"])
def test_missing_scores_say_what_to_do(metrics, name):
    for path in (metrics / f"metrics/{name}.json", metrics / f"metrics/details/{name}.json"):
        path.unlink()
    result = report(metrics)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "make repro" in result.stderr


# The page


def record(folder: Path, heard: tuple[str, ...], rate: float) -> None:
    """Leave in the workspace what a run would, and have DVC take it as one."""
    names = [f"clip-{at:02}" for at in range(CLIPS)]
    voices = [HOSTILE if at % 4 == 3 else f"voice {at % 4}" for at in range(CLIPS)]
    for out in ("data/features", "data/transcripts", "models"):
        shutil.rmtree(folder / out, ignore_errors=True)
    for out in ("data/dropped.tsv", "data/dropped-train.tsv"):
        (folder / out).unlink(missing_ok=True)
    write_text(folder / "params.yaml", PARAMS.format(rate))
    for split in ("train", "test"):
        clips = [
            (Entry(name, SAID[at % 4], voices[at], "yes", 1 + at % 3, 1, 0.0), bytes(80))
            for at, name in enumerate(names)
        ]
        (folder / f"data/features/{split}").mkdir(parents=True)
        write_shard(folder / f"data/features/{split}/00000.zip", "uint8", 80, clips)
        drops = [Drop("train", "broken", "cannot be decoded", "</script><b>no audio</b>")] * (split == "train")
        write_rows(folder / f"data/features/{split}/dropped.tsv", Drop, drops)
    write_rows(folder / "data/dropped.tsv", Drop, [Drop(split, f"mumble-{split}", "too short") for split in SPLITS])
    write_rows(folder / "data/dropped-train.tsv", Drop, [Drop("train", "endless", "label too long")])
    for model, texts in (("pretrained", BASE), ("tuned", heard)):
        write_text(folder / f"models/{model}/weights", f"{model} {rate}")
        rows = [
            (name, SAID[at % 4], texts[at % 4] if at < CLIPS - 4 else SAID[at % 4], 0) for at, name in enumerate(names)
        ]
        write_table(folder / f"data/transcripts/{model}.tsv", ["clip", "reference", "hypothesis", "wer"], rows)
        tables = {
            "lengths": (["length", "wer", "clips"], [("01–02 s", 20 + rate, 10), ("02–03 s", 30, 18)]),
            "speakers": (["speaker", "wer", "clips"], [(HOSTILE, 40, 7), ("voice 1", 10 + rate, 21)]),
            "conditions": (["condition", "wer", "low", "high", "clips"], [("noise 10 dB", 55.5, 50, 60, 28)]),
            "confusions": (["confusion", "count"], [(f"{HOSTILE} → ∅", 3), ("tolv → elva", 2)]),
        }
        for name, (columns, rows) in tables.items():
            path = folder / f"metrics/tables/{model}/{name}.tsv"
            write_table(path, ["model", *columns], [(model, *row) for row in rows])
    steps = [(1, 4.0, 0.1), (2, 2.0, 0.2), (3, 0.05, 0.1)]
    write_table(folder / "metrics/curves/training.tsv", ["step", "loss", "learning_rate"], steps)
    write_table(folder / "metrics/curves/validation.tsv", ["step", "loss", "wer"], [(2, 2.5, 90), (3, 1.5, 48)])
    write_metrics(folder, SCORES | {"wer": 72.5, "wer_low": 70.0, "wer_high": 75.0})
    run(folder, "dvc", "commit", "-q", "-f")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Two revisions, main and the one on ``better``, whose workspace is main's; do not change it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, tmp_path_factory.mktemp("site"))
        folder = tmp_path_factory.mktemp("report") / "repo"
        folder.mkdir()
        run(folder, "git", "init", "-q", "-b", "main")
        Repo.init(str(folder)).close()
        write_text(folder / "dvc.yaml", MAP)
        write_text(folder / ".gitignore", "/data\n/models\n")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder / name)
        write_raw(folder / "data/raw/test", {f"clip-{at:02}": speech(0.4, seed=at) for at in range(CLIPS)}, SAID)
        record(folder, SAID, 0.002)
        run(folder, "git", "checkout", "-qb", "better")
        commit(folder)
        run(folder, "git", "checkout", "-qB", "main")
        record(folder, FEW, 0.001)
        commit(folder)
    return folder


def write(folder: Path, page: Path, *names: str) -> str:
    """What stands in the page that the command wrote."""
    main([*names, "--html", str(page), "--root", str(folder)], standalone_mode=False)
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(repository, tmp_path_factory) -> dict[str, Path]:
    """One of a revision, and one of two side by side."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, tmp_path_factory.mktemp("site"))
        folder = tmp_path_factory.mktemp("pages")
        write(repository, folder / "one.html", "main")
        write(repository, folder / "two.html", "main", "better")
    return {path.stem: path for path in folder.glob("*.html")}


@pytest.fixture(scope="module")
def browser(repository) -> Iterator[Browser]:
    if not find_browser():
        pytest.skip(MISSING)
    with chromium(microphone=repository / "data/raw/test/audio/clip-00.wav") as browser:
        yield browser


@pytest.fixture
def visit(pages, browser) -> Iterator[Callable[..., Page]]:
    """Call with a page's name and what a browser tells of itself; nothing but the file itself may be asked for, and
    nothing may be complained of, whatever is done on the page."""
    contexts, asked, said = [], [], []

    def call(name: str, **how: object) -> Page:
        contexts.append(browser.new_context(**how))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(pages[name].as_uri())
        expect(page.locator(".plot .main-svg").first).to_be_visible()
        return page

    yield call
    for context in contexts:
        context.close()
    files = {pages[name].as_uri() for name in pages}
    assert [url for url in asked if url not in files and not url.startswith("data:")] == []
    assert said == []


def shown(page: Page) -> Locator:
    return page.locator("#clips li:visible")


def colours(page: Page) -> list[str]:
    """Of the page, and of the text of its first plot."""
    return page.evaluate(
        "['body', '.plot text'].map((where, at) => getComputedStyle(document.querySelector(where))"
        "[at ? 'fill' : 'backgroundColor'])"
    )


def test_one_revision_is_told_whole(visit):
    page = visit("one")
    expect(page.locator("h1")).to_have_text("main")
    scores = page.locator("#scores table tr")
    assert scores.nth(1).inner_text().split() == ["WER", "72.5", "70.0", "to", "75.0", "50.0", "45.0", "to", "55.0"]
    titles = ["Loss", "Validation WER, %", "Learning rate"]
    titles += ["WER by clip length", "WER by speaker", "WER by condition"]
    assert page.locator("figure h3").all_inner_texts() == titles
    assert page.locator(".plot .main-svg").count() >= len(titles)
    dropped = page.locator("#data").inner_text()
    assert page.locator(".note").count() == 0
    for words in ("too short", "cannot be decoded", "label too long", "no words"):
        assert words in dropped
    page.locator("#data summary").click()
    for words in ("mumble-train", "broken", "</script><b>no audio</b>", "endless"):
        assert words in page.locator("#data details").inner_text()
    for words in ("train.learning_rate\t0.001", "download.folder.seed\t1"):
        assert words in page.locator("#parameters").inner_text()
    assert "synthetic" not in page.locator("#parameters").inner_text()
    origin = page.locator("#origin").inner_text()
    for words in ("git switch --detach", "make repro", "models/tuned", "torch", "python -m tools.report main"):
        assert words in origin


def test_two_revisions_stand_side_by_side_with_a_verdict(visit):
    page = visit("two")
    expect(page.locator("h1")).to_have_text("A main and B better")
    words = sum(len(SAID[at % 4].split()) for at in range(CLIPS))
    points = 100 * -18 / words  # of each of six rounds three texts were wrong by a word
    expect(page.locator(".verdict").first).to_contain_text(f"B’s WER is significantly better: {points:+.2f} points")
    assert "train.learning_rate\t0.001\t0.002" in page.locator("#differences").inner_text()
    assert page.locator("#parameters .differs").inner_text().split() == ["train.learning_rate", "≠", "0.001", "0.002"]
    first = shown(page).first
    assert re.findall(r"(\d) → (\d) word errors", first.inner_text()) == [("1", "0")]
    page.get_by_role("searchbox").fill("elva")
    edit = shown(page).first.locator(".heard").first
    assert edit.inner_text().split() == ["A", "vi", "köper", "tolv→elva", "ägg"]  # not by colour alone
    assert edit.locator("del").evaluate("part => getComputedStyle(part).textDecorationLine") == "line-through"
    page.get_by_role("searchbox").fill("nu klockan")
    assert shown(page).first.locator(".insertion").inner_text() == "+nu"
    page.get_by_role("searchbox").fill("lördag")
    assert shown(page).first.locator(".deletion").inner_text() == "på"


def test_sentences_are_found_as_one_types(visit):
    page = visit("two")
    expect(shown(page)).to_have_count(20)
    page.get_by_role("button", name="Show all").click()
    expect(shown(page)).to_have_count(CLIPS)
    page.get_by_role("searchbox").press_sequentially("ÖREBRO clip-05")
    expect(shown(page)).to_have_count(1)
    expect(page.locator("#count")).to_have_text("1 of 1 sentence")
    page.get_by_role("searchbox").fill("")
    page.get_by_label("Show").select_option("worse in B")
    expect(shown(page)).to_have_count(0)
    page.get_by_label("Show").select_option("better in B")
    expect(page.locator("#count")).to_have_text("18 of 18 sentences")


def test_a_clip_sounds_until_another_does(visit):
    page = visit("one")
    first, second = page.locator(".play").nth(0), page.locator(".play").nth(1)
    page.evaluate("window.ended = []; document.addEventListener('ended', (e) => ended.push(e.target.duration), true)")
    first.click()
    page.wait_for_function("() => ended.length === 1")
    assert page.evaluate("ended[0]") == pytest.approx(0.4, abs=0.15)  # the codec pads
    expect(first).to_have_text("▶")
    page.evaluate("for (const part of document.querySelectorAll('audio')) part.loop = true")
    first.click()
    expect(first).to_have_text("■")
    second.click()
    expect(first).to_have_text("▶")
    expect(second).to_have_text("■")
    second.click()
    expect(second).to_have_text("▶")


def test_dark_and_light_and_paper(visit):
    page = visit("one", color_scheme="dark")
    dark = colours(page)
    page.get_by_role("button", name="Dark or light").click()
    light = colours(page)
    assert all(one != other for one, other in zip(dark, light, strict=True))
    page.get_by_role("button", name="Dark or light").click()
    assert colours(page) == dark
    page.emulate_media(media="print")
    page.wait_for_function(
        "colour => getComputedStyle(document.querySelector('.plot text')).fill === colour", arg=light[1]
    )
    expect(page.locator("#theme")).to_be_hidden()
    expect(page.locator("#search")).to_be_hidden()


def test_a_telephone_needs_no_scrolling_sideways(visit):
    page = visit("two", viewport={"width": 375, "height": 812})
    for part in page.locator("summary").all():
        part.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_nothing_from_data_becomes_part_of_the_page(pages, browser):
    """And where something did, the page's policy lets it neither run nor ask for anything."""
    page = browser.new_page()
    stopped, answered = [], []
    page.on("requestfailed", lambda request: stopped.append(request.failure))
    page.on("requestfinished", lambda request: answered.append(request.url))
    page.goto(pages["one"].as_uri())
    expect(page.locator("#errors")).to_contain_text(HOSTILE)
    page.get_by_role("searchbox").fill("<img")
    expect(shown(page).first).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 0
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'left', () => 'refused')") == "refused"
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/ onerror=\"ran = 1\">')")
    page.wait_for_function("() => document.querySelector('img').complete")
    assert page.evaluate("typeof ran") == "undefined"
    assert set(stopped) <= {"csp"} and set(answered) <= {pages["one"].as_uri()}
    page.close()


def test_the_same_input_gives_the_same_bytes_in_few_megabytes(repository, pages, tmp_path):
    write(repository, tmp_path / "again.html", "main", "better")
    assert (tmp_path / "again.html").read_bytes() == pages["two"].read_bytes()
    assert pages["two"].stat().st_size < 6 * 2**20


def test_a_page_holds_as_many_words_as_stay_in_few_megabytes():
    clip = Spoken("clip", "", None, "", [Alignment([Piece("delete", "så", "")] * 100, "", 100)] * 2)
    assert len(fitting([clip] * MOST)) == MOST_WORDS // 200 < MOST
    short = replace(clip, alignments=[Alignment([Piece("delete", "så", "")], "", 1)])
    assert len(fitting([short] * (MOST + 1))) == MOST


@pytest.fixture
def copy(repository, tmp_path) -> Path:
    return shutil.copytree(repository, tmp_path / "copy", symlinks=True)


def test_scores_older_than_their_model_are_left_out(copy, tmp_path):
    yaml = YAML()
    lock = yaml.load(copy / "dvc.lock")
    (model,) = [out for out in lock["stages"]["train"]["outs"] if out["path"] == "models/tuned"]
    model["md5"] = "0" * 32  # as after a run of train alone
    yaml.dump(lock, copy / "dvc.lock")
    text = write(copy, tmp_path / "page.html")
    assert "evaluate@tuned has not run since models/tuned was made anew: run `dvc repro evaluate@tuned`" in text
    assert ">50.0<" not in text and ">72.5<" in text and "Validation WER" in text


def test_without_transcripts_and_audio_the_rest_is_there(copy, tmp_path):
    for gone in ("data/transcripts", ".dvc/cache", "data/raw"):
        shutil.rmtree(copy / gone)
    text = write(copy, tmp_path / "page.html", "main")
    assert "Sentences are left out: data/transcripts/tuned.tsv of main is not in DVC" in text
    assert "What featurize dropped is not listed: data/features/train of main is not in DVC" in text
    assert 'id="clips"' not in text and 'id="scores"' in text


def test_audio_of_other_clips_is_left_out(copy, tmp_path):
    clips = copy / "data/raw/test/clips.tsv"
    clips.write_text(clips.read_text(encoding="utf-8").replace(SAID[0], SAID[1]), encoding="utf-8")
    text = write(copy, tmp_path / "page.html", "main")
    assert text.count("<audio") == CLIPS * 3 // 4


def test_other_test_sets_are_refused(copy, tmp_path):
    path = copy / "data/transcripts/tuned.tsv"
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.unlink()
    path.write_text("".join(rows[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match=r"1 only in main \(clip-27\)"):
        write(copy, tmp_path / "page.html", "main", "workspace")
    assert not (tmp_path / "page.html").exists()


def test_three_revisions_are_for_compare(repository, tmp_path):
    with pytest.raises(UserError, match=r"at most 2, or see `python -m tools.compare main better main`"):
        write(repository, tmp_path / "page.html", "main", "better", "main")


@pytest.mark.parametrize("library", ["plotly", "jinja2"])
def test_a_missing_library_says_how_to_have_it(repository, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    for module in ("page", "figures", "rendering"):
        monkeypatch.delitem(sys.modules, f"tools.report.{module}", raising=False)
    with pytest.raises(UserError, match=rf"the page needs {library}.*pip install .*\[experiments\]"):
        write(repository, tmp_path / "page.html", "main")
