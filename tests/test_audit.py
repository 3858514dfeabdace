"""``python -m tools.audit`` on the built-in corpus with faults planted, and ``download.drop`` of what it finds."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from playwright.sync_api import expect

from stages.asr.clips import SPLITS, Clip, Drop, read_clips, write_clips
from stages.asr.labels import LabelStyle
from stages.asr.mel import SAMPLE_RATE
from stages.asr.model import save_model
from stages.corpora.selection import possible_ids
from stages.download import download, drop_clips
from stages.params import Download, load_params
from stages.params_file import ParamsFile
from stages.runtime.errors import UserError
from tests.support.browser import MISSING, chromium, find_browser
from tests.support.material import ROOT, allow, speech, write_params, write_raw
from tools.audit.__main__ import write_drop
from tools.audit.corpus import audit_corpus
from tools.audit.duplicates import SAME, find_candidates, likeness
from tools.audit.findings import AuditedClip, find_faults
from tools.audit.likelihood import Likelihood, Scoring, load_trained, score_texts
from tools.audit.overview import Audit, as_table, as_values, in_turn, write_page
from tools.audit.sounds import measure
from tools.audit.texts import odd_characters, odd_languages

SIZES = {"train": 60, "validation": 6, "test": 8}
HOSTILE = "<img src=http://example.com/x.png onerror=alert(1)>"


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A folder with params.yaml and raw, the built-in corpus as download leaves it."""
    folder = tmp_path_factory.mktemp("clean")
    values = {f"download.synthetic.{split}": number for split, number in SIZES.items()} | {"compute.processes": 1}
    run_download(write_params(folder / "params.yaml", values), folder)
    return folder


def run_download(params: Path, folder: Path) -> dict:
    settings = load_params(params).download
    return download(settings, folder / "raw", folder / "dropped.tsv", folder / "download.json", 1)


@pytest.fixture(scope="module")
def faulty(clean, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A copy with a fault of each kind, and the kind by clip."""
    folder = tmp_path_factory.mktemp("faulty") / "corpus"
    shutil.copytree(clean, folder)
    clips = {split: read_clips(folder / "raw" / split) for split in SPLITS}
    train = sorted(clips["train"], key=lambda clip: len(clip.text))
    planted: dict[str, str] = {}

    def sounding(clip: Clip, kind: str, change) -> None:
        path = folder / "raw/train/audio" / clip.audio
        samples, _ = soundfile.read(path, dtype="float32")
        soundfile.write(path, change(samples), SAMPLE_RATE)
        planted[clip.id] = kind

    noise = 0.01 * np.random.default_rng(1).standard_normal(4 * SAMPLE_RATE)
    sounding(train[10], "silence", np.zeros_like)
    sounding(train[11], "silence", lambda samples: noise[: len(samples)])
    sounding(train[12], "clipping", lambda samples: 0.9 * np.clip(8 * samples / np.abs(samples).max(), -1, 1))
    sounding(train[13], "narrow band", lambda samples: soxr.resample(soxr.resample(samples, 4, 1), 1, 4))
    sounding(train[14], "cut off", cut)
    (folder / "raw/train/audio" / train[15].audio).write_bytes(b"no audio")
    planted[train[15].id] = "unreadable"
    texts = {
        train[16].id: ("odd characters", train[16].text + "\u200b"),
        train[17].id: ("other language", "the quick brown fox jumps over the lazy dog which would rather have slept"),
        train[0].id: ("speaking rate", train[-1].text + " och " + train[-2].text),
    }
    copied, source = clips["test"][0], train[18]
    samples, _ = soundfile.read(folder / "raw/train/audio" / source.audio, dtype="float32")
    later = np.concatenate([np.zeros(1234, np.float32), 0.5 * samples])
    soundfile.write(folder / "raw/test/audio" / copied.audio, later, SAMPLE_RATE)
    planted |= {name: kind for name, (kind, _) in texts.items()} | dict.fromkeys(
        (copied.id, source.id), "duplicate audio"
    )
    texts[copied.id] = ("", source.text)
    for split in SPLITS:
        write_clips(folder / "raw" / split, [with_text(clip, texts) for clip in clips[split]])
    return folder, planted


def cut(samples: np.ndarray) -> np.ndarray:
    """Up to its loudest moment."""
    return samples[: int(np.argmax(np.abs(samples))) + 100]


def with_text(clip: Clip, texts: dict[str, tuple[str, str]]) -> Clip:
    return Clip(clip.id, clip.audio, texts[clip.id][1] if clip.id in texts else clip.text, clip.speaker)


@pytest.fixture(scope="module")
def audit(faulty) -> Audit:
    folder, _ = faulty
    return audit_corpus(folder / "raw", folder / "params.yaml", None)


def found(audit: Audit) -> set[tuple[str, str]]:
    return {(audit.clips[one.number].clip.id, one.kind) for one in audit.findings}


# What is found


def test_a_clean_corpus_has_no_faults(clean):
    audit = audit_corpus(clean / "raw", clean / "params.yaml", None)
    assert {one.kind for one in audit.findings} <= {"shared sentence"}
    assert {split: numbers["clips"] for split, numbers in audit.splits().items()} == SIZES
    assert "Without --model" in as_table(audit)


def test_each_planted_fault_is_found_by_its_kind_and_nothing_else_is_listed(audit, faulty):
    _, planted = faulty
    listed = found(audit)
    assert set(planted.items()) <= listed
    kinds = {kind for _, kind in planted.items()}
    assert {clip for clip, kind in listed if kind in kinds} <= planted.keys()


def test_of_two_copies_in_two_splits_the_one_in_train_goes(audit, faulty):
    _, planted = faulty
    pair = [clip for clip, kind in planted.items() if kind == "duplicate audio"]
    (dropped,) = audit.drop()["duplicate audio"]
    assert dropped in pair and dropped in {one.clip.id for one in audit.clips if one.split == "train"}


def test_a_recording_is_found_again_shifted_softer_and_encoded_anew_among_others():
    sounds = [speech(1.5, seed) for seed in range(12)]
    again = np.concatenate([np.zeros(777, np.float32), 0.3 * sounds[5]])
    again += 1e-4 * np.random.default_rng(1).standard_normal(len(again)).astype(np.float32)
    pairs = find_candidates([measure(one, SAMPLE_RATE).landmarks for one in [*sounds, again]])
    assert (5, 12) in pairs
    assert likeness(sounds[5], again) >= SAME
    assert likeness(again, -sounds[5]) >= SAME
    assert max(likeness(sounds[at], again) for at in range(12) if at != 5) < SAME
    assert find_candidates([]) == []


@pytest.mark.parametrize("seconds", [0.0001, 0.005, 0.02, 31])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_any_length_and_level_is_measured(seconds, level):
    sound = measure(np.full(max(round(seconds * 8000), 1), level, np.float32), 8000)
    assert sound.seconds == pytest.approx(seconds, abs=1e-3)
    assert 0 <= sound.speech_seconds <= sound.seconds + 0.01


def test_characters_are_odd_where_hardly_another_text_has_their_kind():
    texts = [f"åsa köper {what}" for what in ("ägg", "ost", "é", "bröd") for _ in range(100)]
    odd = ["jag är 5 år", "Тack", "hej \N{GRINNING FACE}", "<b>hej</b>", "pÃ¥ lördag", "hej\u00ad då", "nej\ufffd"]
    assert sorted(odd_characters(texts + odd)) == list(range(400, 407))
    assert not odd_characters([f"klockan är {hour}" for hour in range(24)])  # numerals are this corpus's way
    assert odd_characters([]) == {} and odd_languages([]) == {}


def test_what_many_clips_have_is_told_once_and_not_listed():
    sound = measure(speech(1.0), SAMPLE_RATE)
    splits = [("train", "hej på dig")] * 3 + [("test", "Hej, på dig!")] * 3
    clips = [
        AuditedClip(split, Clip(f"c{at}", "", text, "anna"), Path(), sound) for at, (split, text) in enumerate(splits)
    ]
    findings, notes = find_faults(clips)
    assert not {one.kind for one in findings} & {"shared sentence", "cut off"}
    assert "3 of 3 clips (100 %) of validation and test have the sentence of one in train." in notes


# What a model finds


def test_a_model_finds_its_own_text_as_likely_as_itself_and_says_what_else_it_hears(model, tmp_path):
    letters = model.tokenizer("abcdefgh", add_special_tokens=False).input_ids
    allow(model, {*letters, model.whisper.generation_config.eos_token_id})
    raw = write_raw(tmp_path / "train", {f"c{at}": speech(0.5 + 0.3 * at, at) for at in range(4)})
    paths = sorted((raw / "audio").iterdir())
    seconds = [0.5, 0.8, 1.1, 1.4]
    scoring = Scoring(LabelStyle(), 3, 1)
    save_model(model, tmp_path / "fresh")
    with pytest.raises(UserError, match="never trained"):
        load_trained(tmp_path / "fresh")
    first = score_texts(model, paths, ["a", "b", "", "d"], [0.5, 99, 1.1, 1.4], scoring)
    assert [one is None for one in first] == [False, True, True, False]  # beyond the window, and nothing to teach
    own = first[0].heard
    again = score_texts(model, paths, [own, "h", "h", "h"], seconds, scoring)
    assert again[0] == Likelihood(own, pytest.approx(0, abs=1e-3))
    assert all(one.nats != 0 for one in again[1:])


def test_texts_that_a_model_finds_unlikely_are_listed_worst_first():
    sound = measure(speech(1.0), SAMPLE_RATE)
    heard = [("Hej!", 50.0), ("tack", 8.0), ("tack", 30.0), ("tack", 3.0)]  # the first one says the same
    clips = [
        AuditedClip("train", Clip(f"c{at}", "", "hej", "anna"), Path(), sound, Likelihood(*one))
        for at, one in enumerate(heard)
    ]
    assert [one.number for one in find_faults(clips)[0] if one.kind == "unlikely text"] == [2, 1]


# What is written


def test_the_command_prints_json_and_refuses_what_is_not_there(faulty, audit):
    folder, _ = faulty
    command = [sys.executable, "-m", "tools.audit", "--params", folder / "params.yaml", "--raw", folder / "raw"]
    ended = subprocess.run([*command, "--json", "--kind", "silence"], capture_output=True, cwd=ROOT)
    values = json.loads(ended.stdout)
    assert values["counts"] == {"silence": 2} == dict(Counter(one["kind"] for one in values["findings"]))
    assert values["drop"]["silence"] == as_values(audit)["drop"]["silence"]
    with pytest.raises(UserError, match="run the download stage"):
        audit_corpus(folder / "nothing", folder / "params.yaml", None)


def test_what_is_found_can_be_left_out(clean, audit, tmp_path):
    params = tmp_path / "params.yaml"
    shutil.copy(clean / "params.yaml", params)
    values = ParamsFile(params)
    values.set("download.drop.listened", ["test-0000"])
    values.save()
    reasons = audit.drop()
    write_drop(params, reasons)
    kept = load_params(params).download.drop
    assert kept == reasons | {"listened": ["test-0000"]}
    write_drop(params, reasons)
    assert load_params(params).download.drop == kept


def test_clips_that_download_drops_are_counted_and_the_others_stay(clean, tmp_path):
    before = {split: read_clips(clean / "raw" / split) for split in SPLITS}
    gone = {"wrong text": [before["train"][3].id, before["test"][1].id], "cough": [before["train"][7].id]}
    params = tmp_path / "params.yaml"
    shutil.copy(clean / "params.yaml", params)
    write_drop(params, gone)
    counts = run_download(params, tmp_path)
    assert counts["train"]["dropped"] == {"cough": 1, "wrong text": 1} and counts["train"]["clips"] == 58
    names = {name for listed in gone.values() for name in listed}
    for split in SPLITS:
        left = read_clips(tmp_path / "raw" / split)
        assert [clip.id for clip in left] == [clip.id for clip in before[split] if clip.id not in names]
        assert {path.name for path in (tmp_path / "raw" / split / "audio").iterdir()} == {clip.audio for clip in left}
        for clip in left:
            place = Path("raw") / split / "audio" / clip.audio
            assert (tmp_path / place).read_bytes() == (clean / place).read_bytes()


def test_a_clip_to_drop_that_does_not_exist_is_named_and_one_that_is_dropped_already_is_not(tmp_path):
    clips = {split: [Clip(f"{split}-1", "", "hej", "anna")] for split in SPLITS}
    drops = [Drop("train", "clips/å 2.wav", "too short")]
    known = possible_ids("clips/å 2.wav")

    def naming(clips: list[str]) -> Download:
        return load_params(ROOT / "params.yaml").download.model_copy(update={"drop": {"cough": clips}})

    assert not drop_clips(naming(list(known)), clips, drops, tmp_path)
    with pytest.raises(UserError, match=r"download\.drop\.cough: the corpus has no clip test_1; did you mean test-1\?"):
        drop_clips(naming([known[0], "test_1"]), clips, drops, tmp_path)


def test_the_page_plays_what_was_found_shows_one_kind_and_asks_nothing_of_the_network(audit, tmp_path):
    if not find_browser():
        pytest.skip(MISSING)
    hostile = audit.clips[audit.findings[0].number]
    clips = [one if one is not hostile else with_hostile_text(one) for one in audit.clips]
    write_page(Audit(audit.folder, clips, audit.findings, [HOSTILE], ""), tmp_path / "audit.html")
    requests, errors = [], []
    with chromium(ROOT / "app/page.png") as browser:
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto((tmp_path / "audit.html").as_uri())
        expect(page.locator("#count")).to_contain_text(f"of {len(audit.findings)} findings")
        expect(page.locator(".plot svg.main-svg").first).to_be_visible()
        page.locator("#kind").select_option("silence")
        expect(page.locator("#clips li:visible")).to_have_count(2)
        page.locator("#clips li:visible .play").first.click()
        expect(page.locator("#clips li:visible .play").first).to_have_text("■")
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == [] == errors


def with_hostile_text(one: AuditedClip) -> AuditedClip:
    return AuditedClip(one.split, Clip(one.clip.id, one.clip.audio, HOSTILE, HOSTILE), one.path, one.sound)


def test_a_common_kind_leaves_room_for_the_others(audit):
    assert [one.kind for one in in_turn(audit.findings)[: len(audit.counts())]] == list(audit.counts())
