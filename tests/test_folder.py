import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages.asr.audio import read_audio
from stages.asr.clips import SPLITS
from stages.corpora import folder as corpus
from stages.params import Folder
from stages.runtime.errors import UserError
from tests.support.material import with_sample
from tests.support.tones import number_of, numeral, record, record_with_ffmpeg, sound, write_table

ROWS = [{"path": f"clips/{number}.wav", "text": f"Mening {number}."} for number in range(12)]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The folder of recordings, ``mine`` among the user's data."""
    monkeypatch.setenv("VISKA_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def settings(root: Path, **values) -> Folder:
    rest = {"path": "mine", "table": None, "validation": 0.1, "test": 0.2, "limit": None, "seed": 1}
    rest |= {"min_seconds": 0.2, "max_seconds": 1.5}
    return Folder(**({"digest": corpus.recordings_digest(root)} | rest | values))


def collect(root: Path, **values) -> tuple[dict[str, list], Counter]:
    """Clips by split, and drops by reason; checks that audio goes with its text where the text ends in a number."""
    folder = root.parent / f"raw-{len(list(root.parent.glob('raw-*')))}"
    clips, drops = corpus.collect(settings(root, **values), folder, 1)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {f"{split}/audio/{clip.audio}" for split in SPLITS for clip in clips[split]}
    for split in SPLITS:
        for clip in clips[split]:
            if clip.text.startswith("Mening"):
                assert clip.text == f"Mening {number_of(folder / split / 'audio' / clip.audio)}."
    ids = [clip.id for split in SPLITS for clip in clips[split]]
    assert len(ids) == len(set(ids))
    assert all(set(name) <= set("-._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for name in ids)
    assert not [drop for drop in drops if str(root.parent) in drop.detail]  # the list is the same on every machine
    return clips, Counter(drop.reason for drop in drops)


def sizes(clips: dict[str, list]) -> tuple[int, ...]:
    return tuple(len(clips[split]) for split in SPLITS)


@pytest.mark.parametrize("name", ["table.tsv", "table.csv", "table.jsonl", "TABLE.CSV"])
@pytest.mark.parametrize(
    "header", [("path", "text"), ("Audio_Path", "Sentence"), ("file_name", "transcription"), ("audio", "transcript")]
)
def test_tables_of_three_kinds_with_flexible_headers(root, name, header):
    write_table(root, [dict(zip(header, row.values(), strict=True)) for row in ROWS], name)
    clips, drops = collect(root)
    assert sizes(clips) == (9, 1, 2)
    assert not drops


def test_the_recorders_layout_pairs_by_number(root):
    lines = "".join(f"{number},Mening {number}.\n" for number in range(12))
    (root / "text.csv").write_text("index,sentence\n" + lines)
    for number in range(12):
        record(root / "clips" / f"rec_{number}.wav", number, sample_rate=48_000)
    clips, drops = collect(root)  # which compares each text with its tone
    assert sum(sizes(clips)) == 12
    assert not drops


def test_the_recorders_older_layout_has_no_clips_folder(root):
    (root / "text.csv").write_text('index,sentence\n10,"Mening 10."\n2,"Mening 2."\n3,Mening 3.\n4,Mening 4.\n')
    for number in (2, 10, 3):
        record(root / f"rec_{number}.wav", number)
    clips, drops = collect(root)
    assert sum(sizes(clips)) == 3
    assert drops == {"missing": 1}


def test_csv_is_quoted_and_tsv_is_not(root):
    write_table(root, [row | {"text": f'Hon sa "{row["path"]}", och gick'} for row in ROWS], "table.csv")
    assert all('Hon sa "clips/' in clip.text for clip in collect(root)[0]["train"])
    (root / "table.csv").unlink()
    write_table(root, [row | {"text": f'"{row["text"]}'} for row in ROWS], "table.tsv")
    clips, drops = collect(root)
    assert all(clip.text.startswith('"Mening') for clip in clips["train"])
    assert not drops


def test_a_swedish_excel_writes_semicolons(root):
    path = write_table(root, [row | {"text": f"Åh, {row['text']}"} for row in ROWS], "table.csv", ";")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    clips, drops = collect(root)
    assert all(clip.text.startswith("Åh, Mening") for clip in clips["train"])
    assert not drops
    path.write_text(path.read_text("utf-8-sig"), encoding="cp1252")
    with pytest.raises(UserError, match=r"is not in UTF-8.*save it as UTF-8"):
        collect(root)


def test_a_quote_that_is_never_closed_merges_no_rows(root):
    path = write_table(root, ROWS, "table.csv")
    path.write_text(path.read_text().replace("Mening 3.", '"Mening 3.'))
    with pytest.raises(UserError, match="is a closing quote missing"):
        collect(root)
    path.write_text(path.read_text().replace("Mening 5.", 'Mening 5."'))
    clips, drops = collect(root)
    assert sum(sizes(clips)) == 9
    assert drops == {"malformed row": 3}


def test_the_split_column_decides(root):
    names = ["train", "Train", "dev", "validation", "test", "TEST", "", "valid", "other", "train", "train", "train"]
    write_table(root, [row | {"split": name} for row, name in zip(ROWS, names, strict=True)])
    clips, drops = collect(root)
    assert {clip.text for clip in clips["validation"]} == {"Mening 2.", "Mening 3.", "Mening 7."}
    assert sizes(clips) == (6, 3, 2)
    assert drops == {"unknown split": 1}


def test_a_split_that_the_table_does_not_name_gets_its_share_of_train(root):
    write_table(root, [row | {"split": "test" if numeral(row) < 2 else "train"} for row in ROWS])
    clips, _ = collect(root, validation=0.2)
    assert sizes(clips) == (8, 2, 2)


def test_speakers_stay_together_where_there_are_several(root):
    speakers = ["a", "a", "a", "a", "b", "b", "b", "c", "c", "d", "e", "e"]
    write_table(root, [row | {"speaker": who} for row, who in zip(ROWS, speakers, strict=True)])
    clips, _ = collect(root)
    who = {split: {clip.speaker for clip in clips[split]} for split in SPLITS}
    assert not who["train"] & who["test"] | who["train"] & who["validation"] | who["validation"] & who["test"]
    assert who["test"] == {"d", *who["test"] - {"d"}}  # those with few clips first
    assert sizes(clips) == (7, 2, 3)
    assert "a" in who["train"]


def test_three_speakers_give_one_to_each_split(root):
    write_table(root, [row | {"speaker": "abc"[numeral(row) % 3]} for row in ROWS])
    assert sizes(collect(root, test=0.9, validation=0.05)[0]) == (4, 4, 4)


def test_a_sentence_stays_together_where_speakers_do_not(root):
    signs = ("", ".", "!", " …")
    texts = [f"Text {numeral(row) % 6}{signs[numeral(row) % 4]}" for row in ROWS]  # in two spellings each
    write_table(root, [row | {"text": text, "speaker": "jag"} for row, text in zip(ROWS, texts, strict=True)])
    clips, _ = collect(root)
    texts = [{clip.text.rstrip(".! …") for clip in clips[split]} for split in SPLITS]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 6


def test_a_raised_limit_keeps_the_clips_chosen_before(root):
    write_table(root, ROWS)
    chosen = [{clip.id for clip in collect(root, limit=limit)[0]["train"]} for limit in (2, 4, None)]
    assert [len(ids) for ids in chosen] == [2, 4, 9]
    assert chosen[0] < chosen[1] < chosen[2]
    assert sizes(collect(root, limit=2)[0]) == (2, 1, 2)


def test_dirt_is_dropped_and_counted(root):
    rows = [{"path": f"{number}.wav", "text": f"Mening {number}."} for number in range(20)]
    path = write_table(root, rows)
    (root / "0.wav").unlink()
    (root / "1.wav").write_bytes(b"")
    (root / "2.wav").write_bytes(b"RIFF and no more")
    record(root / "3.wav", 3, seconds=0.05)
    record(root / "4.wav", 4, seconds=1.7)
    record(root / "5.wav", 5, seconds=0)
    for number, value in ((9, np.nan), (10, np.inf)):
        soundfile.write(root / f"{number}.wav", with_sample(sound(number)[:, 0], value), 16_000, "FLOAT")
    (root.parent / "out.wav").write_bytes((root / "6.wav").read_bytes())
    lines = ["7.wav\t \n", "8.wav\tigen\n", "bara en\n", "../out.wav\tute\n", "\tutan\n", f"{root}/19.wav\tigen\n"]
    path.write_text(path.read_text().replace("7.wav\tMening 7.\n", "") + "".join(lines))
    clips, drops = collect(root)
    found = {"missing": 1, "empty": 2, "corrupt": 3, "too short": 1, "too long": 1, "empty sentence": 1}
    assert drops == found | {"repeated row": 2, "malformed row": 2, "outside the archive": 1}
    assert sum(sizes(clips)) == 11


def test_dirt_of_json_lines(root):
    path = write_table(root, [row | {"speaker": "a"} for row in ROWS], "table.jsonl")
    more = ["{", "[1]", '{"path": "clips/1.wav"', '{"path": "clips/2.wav", "text": "\\ud800"}', "", '{"path": null}']
    path.write_text(path.read_text() + "\n".join([*more, '{"path": "clips/x.wav", "text": null, "speaker": 7}']))
    clips, drops = collect(root)
    assert sum(sizes(clips)) == 12
    assert drops == {"malformed row": 5, "empty sentence": 1}


def test_json_lines_that_are_too_deep_are_dropped(root):
    write_table(root, ROWS, "t.jsonl")
    with (root / "t.jsonl").open("a") as table:
        table.write('{"path": "1.wav", "text": ' + "[" * 100_000 + "\n")
    clips, drops = collect(root)
    assert sum(sizes(clips)) == 12 and drops == {"malformed row": 1}


def test_a_folder_called_like_a_table_is_none(root):
    (root / "t.tsv").mkdir()
    write_table(root, ROWS)
    assert sum(sizes(collect(root)[0])) == 12


def test_a_file_name_that_is_not_utf_8_is_named(root):
    name = b"h\xf6r.wav"  # as Latin-1 has it
    try:
        (root / os.fsdecode(name)).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(UserError, match=r"a file whose name is not in UTF-8, 'h.udcf6r\.wav': rename it"):
        corpus.recordings_digest(root)


def test_one_clip_in_two_splits_stays_in_test(root):
    write_table(root, [row | {"split": "train"} for row in ROWS] + [ROWS[0] | {"split": "test"}])
    clips, drops = collect(root)
    assert [clip.text for clip in clips["test"]] == ["Mening 0."]
    assert drops == {"repeated row": 1}


def test_ids_are_file_names_and_unique(root):
    rows = [{"path": path, "text": "hej"} for path in ("a/1.wav", "a/2.wav", "b/2.wav", "b/2.flac", "B/å 3.wav")]
    for number, row in enumerate(rows):
        record(root / row["path"], number)
    (root / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips, drops = collect(root)
    ids = sorted(clip.id for split in SPLITS for clip in clips[split])
    assert [name.rpartition("-")[0] for name in ids] == ["-3", "", "2", "2", "2"]
    assert ids[1] == "1"
    assert not drops


def test_names_of_other_systems(root):
    rows = [{"path": f"ljud/å {number}.wav", "text": f"Mening {number}."} for number in range(3)]
    for number, row in enumerate(rows):
        record(root / unicodedata.normalize("NFD", row["path"]), number)
    table = "".join(row["path"].replace("/", "\\") + "\t" + row["text"] + "\n" for row in rows)
    (root / "table.tsv").write_text("path\ttext\r\n" + table.replace("\n", "\r\n"))
    clips, drops = collect(root)
    assert sizes(clips) == (1, 1, 1)
    assert not drops


SOUNDS = {
    "a.wav": {"sample_rate": 8_000},
    "b.wav": {"sample_rate": 96_000, "n_channels": 2},
    "c.flac": {"sample_rate": 44_100, "n_channels": 2},
    "d.ogg": {"sample_rate": 22_050},
    "e.mp3": {"sample_rate": 32_000, "n_channels": 2},
    "f.opus": {"sample_rate": 48_000},
    "g.m4a": {"sample_rate": 44_100, "n_channels": 2, "codec": "aac"},
    "h.webm": {"sample_rate": 48_000, "n_channels": 1, "codec": "libopus"},
    "i.mp4": {"sample_rate": 48_000, "n_channels": 1, "codec": "aac"},
}


def test_sound_of_every_kind(root):
    for number, (name, how) in enumerate(SOUNDS.items()):
        if "codec" in how:
            record_with_ffmpeg(root / name, number, **how)
        elif name.endswith(".opus"):
            soundfile.write(root / name, sound(number, **how), how["sample_rate"], "OPUS", format="OGG")
        else:
            record(root / name, number, **how)
        assert abs(len(read_audio(root / name, 16_000)) / 16_000 - 0.5) < 0.1
    lines = [f"{name}\tMening {number}.\n" for number, name in enumerate(SOUNDS)]
    (root / "table.tsv").write_text("path\ttext\n" + "".join(lines))
    clips, drops = collect(root)
    assert sum(sizes(clips)) == len(SOUNDS)
    assert not drops


def test_a_playlist_opens_no_other_file(root):
    record(root / "secret.aiff", 1)
    (root / "list.mp3").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{root}/secret.aiff\n#EXT-X-ENDLIST\n")
    (root / "table.tsv").write_text("path\ttext\nlist.mp3\thej\n")
    assert collect(root)[1] == {"corrupt": 1}


def test_changed_recordings_are_noticed(root):
    write_table(root, ROWS)
    before = corpus.recordings_digest(root)
    (root / ".DS_Store").write_bytes(b"litter")
    assert corpus.recordings_digest(root) == before
    collect(root, digest=before[:16])
    record(root / "clips" / "3.wav", 4)
    after = corpus.recordings_digest(root)
    with pytest.raises(UserError, match=f"has changed since it was pinned to {before}: its digest is {after}.*recipe"):
        collect(root, digest=before)
    with pytest.raises(UserError, match=f"is not pinned: its digest is {after}"):
        collect(root, digest=None)
    (root / "clips" / "3.wav").rename(root / "clips" / "33.wav")
    assert corpus.recordings_digest(root) not in (before, after)


def test_what_is_missing_is_named(root):
    with pytest.raises(UserError, match=r"must contain one table.*found: none"):
        collect(root)
    write_table(root, ROWS, "a.tsv")
    write_table(root, ROWS, "b.csv")
    with pytest.raises(UserError, match=r"found: a\.tsv, b\.csv.*set download\.folder\.table"):
        collect(root)
    assert sum(sizes(collect(root, table="b.csv")[0])) == 12
    with pytest.raises(UserError, match=r"does not contain the table c\.csv"):
        collect(root, table="c.csv")
    (root / "a.tsv").write_text("ljud\ttext\nx\ty\n")
    with pytest.raises(UserError, match="has the columns ljud, text; expected one of path, file"):
        collect(root, table="a.tsv")
    with pytest.raises(UserError, match="gone is missing"):
        collect(root, path="gone")
    assert sum(sizes(collect(root, table="b.csv", path=str(root))[0])) == 12
