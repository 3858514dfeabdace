import random
import unicodedata
from pathlib import Path

import pytest

from stages.asr.clips import SPLITS
from stages.runtime.errors import UserError
from tests.support.release import COLUMNS, NAME, OLD_COLUMNS, Release, collect, plain, row, tone
from tests.support.tones import number_of


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """The user's data folder."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("VISKA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def ids(clips: list) -> set[str]:
    return {clip.id for clip in clips}


def test_right_audio_to_right_text(data):
    plain().pack(data)
    clips, drops, folder = collect(data)
    assert {split: len(clips[split]) for split in SPLITS} == {"train": 6, "validation": 2, "test": 2}
    assert not drops
    for split in SPLITS:
        for clip in clips[split]:
            assert clip.text == f"Mening nummer {number_of(folder / split / 'audio' / clip.audio)}."
    assert {clip.speaker for clip in clips["train"]} == {"speaker 0", "speaker 1", "speaker 2"}


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_folder_gives_what_the_archive_gives(data, depth):
    release = plain()
    release.pack(data)
    packed, _, _ = collect(data)
    root = release.unpack(data / "unpacked")
    folder = (root, *root.parents)[depth]
    unpacked, drops, _ = collect(data, archive=folder.relative_to(data).as_posix())
    assert unpacked == packed
    assert not drops


@pytest.mark.parametrize("backwards", [False, True])
def test_tables_may_come_before_or_after_the_clips(data, backwards):
    plain().pack(data, backwards)
    clips, drops, _ = collect(data)
    assert len(clips["train"]) == 6
    assert not drops


def shuffled(columns: list[str]) -> list[str]:
    return random.Random(3).sample(columns, len(columns))


@pytest.mark.parametrize(
    "columns", [COLUMNS, OLD_COLUMNS, COLUMNS[:-1], shuffled(COLUMNS), shuffled(OLD_COLUMNS), COLUMNS[:4]]
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_columns_of_any_release_in_any_order(data, columns, line_end):
    release = plain()
    release.columns, release.line_end = columns, line_end
    release.pack(data)
    clips, drops, _ = collect(data)
    assert sorted((clip.id, clip.text) for clip in clips["test"]) == [
        ("cv_200", "Mening nummer 200."),
        ("cv_201", "Mening nummer 201."),
    ]
    assert not drops


def test_a_stray_quote_swallows_no_rows(data):
    texts = ['"Hej, sade hon.', "Och gick.", 'Han "sa" det"', "'Nej", '"', 'slut "']
    plain(train=[row(number, "a", sentence=text) for number, text in enumerate(texts)]).pack(data)
    clips, drops, _ = collect(data)
    assert {clip.id: clip.text for clip in clips["train"]} == {f"cv_{n}": text for n, text in enumerate(texts)}
    assert not drops


def test_a_sentence_that_came_from_a_csv_loses_its_quoting_and_no_other_does(data):
    texts = {
        '"""Good-bye,"" said the boy."': '"Good-bye," said the boy.',
        '"Hon sa ""ja"""': 'Hon sa "ja"',
        '"""Hej."""': '"Hej."',
        '"Hela meningen."': '"Hela meningen."',
        '""Dubbelt""': '""Dubbelt""',
        '"Ja", sa hon, "nej"': '"Ja", sa hon, "nej"',
        '"': '"',
    }
    plain(train=[row(number, "a", sentence=text) for number, text in enumerate(texts)]).pack(data)
    clips, _, _ = collect(data)
    assert {clip.id: clip.text for clip in clips["train"]} == {
        f"cv_{number}": text for number, text in enumerate(texts.values())
    }


def test_text_is_brought_to_nfc(data):
    plain(train=[row(0, "a", sentence=unicodedata.normalize("NFD", "  Åsa  köper\u00a0ägg "))]).pack(data)
    clips, _, _ = collect(data)
    assert clips["train"][0].text == "Åsa köper ägg"


def damage(release: Release, kind: str) -> None:
    """Add one row to train that has this fault."""
    number = 50 + len(release.tables["train"])
    rows = [row(number, "dirty")]
    release.clips[f"cv_{number}.mp3"] = tone(number)
    if kind == "missing":
        del release.clips[f"cv_{number}.mp3"]
    elif kind == "empty":
        release.clips[f"cv_{number}.mp3"] = b""
    elif kind == "corrupt":
        release.clips[f"cv_{number}.mp3"] = b"<html>404</html>" * 100
    elif kind == "too short":
        release.clips[f"cv_{number}.mp3"] = tone(number, 0.1)
    elif kind == "too long":
        release.clips[f"cv_{number}.mp3"] = tone(number, 2.0)
    elif kind == "empty sentence":
        rows[0]["sentence"] = " \u00a0"
    elif kind == "repeated row":
        rows = [release.tables["train"][0]]
    elif kind == "malformed row":
        rows[0]["line"] = f"dirty\tcv_{number}.mp3\tfor få"
    elif kind == "outside the archive":
        rows[0]["path"] = "../../secret.mp3"
    elif kind == "speaker in test":
        rows[0]["client_id"] = "test 200"
    elif kind == "sentence in test":
        rows[0]["sentence"] = unicodedata.normalize("NFD", "MENING  nummer 201.")
    elif kind == "clip in test":
        rows = [row(200, "dirty", sentence="En annan.")]
    elif kind == "speaker in validation":
        rows[0]["client_id"] = "dev 100"
    elif kind == "sentence in validation":
        rows[0]["sentence"] = 'mening \u2013 nummer "100"'
    release.tables["train"] += rows


DIRT = [
    *("missing", "empty", "corrupt", "too short", "too long", "empty sentence", "repeated row", "malformed row"),
    *("outside the archive", "clip in test", "speaker in test", "sentence in test"),
    *("speaker in validation", "sentence in validation"),
]


@pytest.mark.parametrize("kind", DIRT)
def test_each_kind_of_dirt_alone(data, kind):
    release = plain()
    damage(release, kind)
    release.pack(data)
    clips, drops, _ = collect(data)
    assert ids(clips["train"]) == {f"cv_{number}" for number in range(6)}
    assert drops == {("train", kind): 1}


@pytest.mark.parametrize("packed", [True, False])
def test_all_dirt_at_once(data, packed):
    release = plain()
    counts = {kind: 1 + number % 3 for number, kind in enumerate(DIRT)}
    for kind, count in counts.items():
        for _ in range(count):
            damage(release, kind)
    counts["repeated row"] += counts["clip in test"] - 1  # these name one clip
    counts["clip in test"] = 1
    random.Random(1).shuffle(release.tables["train"])
    if packed:
        release.pack(data)
    else:
        release.unpack(data / NAME)
    clips, drops, _ = collect(data)
    assert drops == {("train", kind): count for kind, count in counts.items()}
    assert len(release.tables["train"]) == len(clips["train"]) + drops.total()
    assert len(clips["train"]) == 6


def test_bytes_that_are_no_text_are_dropped(data):
    release = plain()
    path = release.unpack(data / "unpacked") / "train.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"nummer 3.", b"nummer \xe5.") + b"\n\n")
    clips, drops, _ = collect(data, archive="unpacked")
    assert drops == {("train", "malformed row"): 1}
    assert len(clips["train"]) == 5


def test_a_raised_limit_keeps_the_clips_chosen_before(data):
    release = plain(60)
    for number in range(0, 60, 4):
        release.clips[f"cv_{number}.mp3"] = b"damaged"
    release.pack(data)
    chosen = {}
    for limit in (3, 12, 30, None):
        clips, drops, _ = collect(data, train_limit=limit)
        chosen[limit] = ids(clips["train"])
        assert len(chosen[limit]) == (limit or 45)
        assert len(chosen[limit]) + drops.total() == 60
    assert chosen[3] < chosen[12] < chosen[30] < chosen[None]
    assert chosen[12] != ids(collect(data, train_limit=12, seed=2)[0]["train"])


def test_a_limit_is_met_however_many_clips_are_damaged(data):
    release = plain(100)
    for number in range(8, 100):
        release.clips[f"cv_{number}.mp3"] = b"damaged"
    release.pack(data)
    clips, drops, _ = collect(data, train_limit=8)
    assert ids(clips["train"]) == {f"cv_{number}" for number in range(8)}
    assert drops["train", "corrupt"] + drops["train", "beyond the limit"] == 92


def test_the_limit_of_test_changes_no_other_split(data):
    release = plain(train=[row(0, "a"), row(1, "test 200"), row(2, "test 201")])
    release.pack(data)
    clips, drops, _ = collect(data, test_limit=1)
    assert len(clips["test"]) == 1
    assert ids(clips["train"]) == {"cv_0"}
    assert drops == {("train", "speaker in test"): 2, ("test", "beyond the limit"): 1}


def test_speakers_are_held_out_where_train_uses_all_tables(data):
    many = [row(number, f"speaker {number % 10}") for number in range(40)]
    other = [row(300, "test 200"), row(301, "speaker 1")]
    plain(train=many, other=other).pack(data)
    held_out = {"train": ["train", "validation", "other"], "validation": [], "held_out_speakers": 0.25}
    clips, drops, _ = collect(data, **held_out)
    train, validation = ({clip.speaker for clip in clips[split]} for split in ("train", "validation"))
    assert not train & validation
    assert len(validation) == 3  # of twelve: ten, and two of dev
    assert len(clips["train"]) + len(clips["validation"]) == 43
    assert drops == {("train", "speaker in test"): 1}
    assert collect(data, **held_out, train_limit=5)[0]["validation"] == clips["validation"]


def test_one_speaker_cannot_be_held_out(data):
    plain(train=[row(0, "a"), row(1, "a")]).pack(data)
    with pytest.raises(UserError, match="held_out_speakers needs two speakers that test does not have, found 1"):
        collect(data, validation=[], held_out_speakers=0.1)


def test_protection_can_be_turned_off_but_not_for_clips(data):
    release = plain(validated=[row(200, "test 200"), row(100, "dev 100"), row(300, "test 200"), row(301, "dev 100")])
    release.pack(data)
    tables = {"train": ["train", "validated"]}
    clips, drops, _ = collect(data, **tables)
    assert len(clips["train"]) == 6
    assert drops.total() == 4
    clips, drops, _ = collect(data, **tables, allow_overlap="five speakers alone")
    assert len(clips["train"]) == 8
    assert drops == {("train", "clip in test"): 1, ("train", "clip in validation"): 1}


def test_validation_keeps_off_test_too(data):
    plain(dev=[row(100, "dev"), row(101, "test 200"), row(102, "dev", sentence="mening nummer 201.")]).pack(data)
    clips, drops, _ = collect(data)
    assert ids(clips["validation"]) == {"cv_100"}
    assert drops == {("validation", "speaker in test"): 1, ("validation", "sentence in test"): 1}


def test_clips_without_a_speaker_are_not_one_speaker(data):
    plain(train=[row(0, "")], test=[row(200, "")]).pack(data)
    clips, drops, _ = collect(data)
    assert [clip.speaker for clip in clips["train"] + clips["test"]] == ["unknown", "unknown"]
    assert not drops
