"""A corpus, or several, in the pipeline's own layout."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.asr.clips import SPLITS, read_clips
from stages.corpora.folder import recordings_digest
from stages.download import download
from stages.params import load_params
from stages.runtime.errors import UserError
from tests.support.material import write_params
from tests.support.tones import write_table

A = {  # a number, which is the tone's too: its split, text and speaker
    0: ("train", "Noll.", "anna"),
    1: ("train", "Ett.", "bo"),
    4: ("train", "Sexton", "kim"),
    2: ("validation", "Två.", "cia"),
    3: ("test", "Tre.", "dan"),
}
B = {
    10: ("train", "TRE!", "eva"),
    11: ("train", "Elva.", "dan"),
    3: ("train", "Annat.", "fia"),
    12: ("train", "två", "gun"),
    13: ("train", "Tretton.", "hal"),
    14: ("validation", "tre", "ida"),
    15: ("validation", "Femton.", "ida"),
    16: ("test", "Sexton.", "jan"),
}


@pytest.fixture
def bring(tmp_path, monkeypatch) -> Callable[..., tuple[dict, Path]]:
    """Call with corpora and probes, each a dictionary with ``rows`` as above: the counts, and the folder of all."""
    monkeypatch.setenv("VISKA_DATA", str(tmp_path / "data"))

    def source(name: str, rows: dict, **values: object) -> dict[str, object]:
        root = tmp_path / "data" / name
        columns = ("split", "text", "speaker")
        write_table(root, [{"path": f"{n}.wav"} | dict(zip(columns, row, strict=True)) for n, row in rows.items()])
        return {"corpus": "folder", "set": {"path": name, "digest": recordings_digest(root)}} | values

    def call(corpora: dict[str, dict], probes: dict[str, dict] | None = None, **values: object) -> tuple[dict, Path]:
        named = {
            f"download.{kind}": {name: source(name, **given) for name, given in sources.items()}
            for kind, sources in {"corpora": corpora, "probes": probes or {}}.items()
        }
        values = {f"download.{key}": value for key, value in values.items()}
        settings = load_params(write_params(tmp_path / "params.yaml", named | values)).download
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        return download(settings, folder / "raw", folder / "dropped.tsv", folder / "details.json", 1), folder

    return call


def ids(folder: Path, split: str) -> list[str]:
    """Of a split's clips, whose audio is there, and no other."""
    clips = read_clips(folder / "raw" / split)
    assert {path.name for path in (folder / "raw" / split / "audio").iterdir()} == {clip.audio for clip in clips}
    return [clip.id for clip in clips]


def drops(folder: Path) -> list[list[str]]:
    """Split, id, reason and detail, without the file's suffix."""
    return [line.replace(".wav", "").split("\t") for line in (folder / "dropped.tsv").read_text().splitlines()[1:]]


def test_download_lists_marks_and_counts(tmp_path):
    sizes = {"train": 4, "validation": 2, "test": 4}  # train hears four of the twelve known voices
    values = {f"download.synthetic.{split}": number for split, number in sizes.items()}
    settings = load_params(write_params(tmp_path / "params.yaml", values)).download
    (tmp_path / "raw/train").mkdir(parents=True)
    (tmp_path / "raw/train/stale.wav").write_bytes(b"of an earlier run")
    counts = download(settings, tmp_path / "raw", tmp_path / "dropped.tsv", tmp_path / "details/download.json", 1)
    assert counts == json.loads((tmp_path / "details/download.json").read_text())
    assert {split: counts[split]["clips"] for split in counts} == sizes
    assert not (tmp_path / "raw/train/stale.wav").exists()
    heard = {clip.speaker for clip in read_clips(tmp_path / "raw/train")}
    for clip in read_clips(tmp_path / "raw/test"):
        assert clip.known_speaker == ("yes" if clip.speaker in heard else "no")
        assert (tmp_path / "raw/test/audio" / clip.audio).is_file()
    assert (tmp_path / "dropped.tsv").read_text() == "split\tid\treason\tdetail\n"


def test_several_corpora_share_no_speaker_no_sentence_and_no_audio_across_splits(bring):
    counts, folder = bring({"a": {"rows": A}, "b": {"rows": B}})
    assert ids(folder, "train") == ["a.0", "a.1", "b.13"]
    assert ids(folder, "validation") == ["a.2", "b.15"]
    assert ids(folder, "test") == ["a.3", "b.16"]
    assert drops(folder) == [
        ["train", "a.4", "sentence in test", "b.16"],
        ["train", "b.10", "sentence in test", "a.3"],
        ["train", "b.11", "speaker in test", "a.3"],
        ["train", "b.12", "sentence in validation", "a.2"],
        ["train", "b.3", "audio in test", "a.3"],
        ["validation", "b.14", "sentence in test", "a.3"],
    ]
    reasons = {"audio in test": 1, "sentence in test": 2, "sentence in validation": 1, "speaker in test": 1}
    assert counts["train"]["dropped"] == reasons
    assert {path.name for path in (folder / "raw").iterdir()} == {*SPLITS, "probes"}
    _, again = bring({"b": {"rows": B}, "a": {"rows": A}})  # in whatever order they stand
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / path).read_bytes() == (again / path).read_bytes() for path in files)


def test_who_speaks_a_clip_without_a_speaker_is_neither_known_nor_new(bring):
    rows = {n: (split, f"Mening {n}.", "") for n, split in enumerate(("train", "train", "validation", "test"))}
    _, folder = bring({"a": {"rows": rows | {9: ("test", "Nio.", "x")}}})
    marks = {clip.id: clip.known_speaker for clip in read_clips(folder / "raw/test")}
    assert marks == {"a.3": "", "a.9": "no"}


def test_a_source_gives_to_train_alone_no_more_than_its_limit_and_its_share(bring):
    rows = {number: ("train", f"Mening {number}.", f"speaker {number}") for number in range(20, 40)}
    chosen = []
    for share in (0.25, 0.5):
        _, folder = bring({"a": {"rows": A}, "b": {"rows": rows | B, "train_only": True, "limit": 12, "share": share}})
        assert ids(folder, "test") == ["a.3"] and ids(folder, "validation") == ["a.2"]
        train = [name for name in ids(folder, "train") if name.startswith("b.")]
        reasons = [reason for split, _, reason, _ in drops(folder) if split == "train"]
        left = 12 - sum(reason.endswith(("in test", "in validation")) for reason in reasons)
        assert len(train) == round(share * left) and reasons.count("beyond the share") == left - len(train)
        chosen.append(set(train))
    assert chosen[0] < chosen[1]


def test_a_probe_takes_nothing_from_train_and_says_what_it_shares(bring, capsys):
    rows = {0: ("", "Annat.", "anna"), 50: ("", "Ett", "x"), 51: ("", "Nytt.", "y")}
    counts, folder = bring(
        {"a": {"rows": A}}, {"own": {"rows": rows, "language": "en"}, "few": {"rows": B, "limit": 1}}
    )
    assert ids(folder, "train") == ["a.0", "a.1", "a.4"]
    assert ids(folder, "probes/own") == ["own.0", "own.50", "own.51"]  # the table names no test
    assert ids(folder, "probes/few") == ["few.16"]
    assert [clip.known_speaker for clip in read_clips(folder / "raw/probes/own")] == ["yes", "no", "no"]
    assert (folder / "raw/probes/probes.tsv").read_text() == "name\tlanguage\nfew\t\nown\ten\n"
    own = {"clips": 3, "speakers": 3, "dropped": {}, "in_train": {"audio": 1, "sentence": 1}}
    assert counts["probes"]["own"] == own
    assert counts["probes"]["few"]["in_train"] == {"sentence": 1}
    said = capsys.readouterr().err
    assert "probe own: the audio of 1 and the sentence of 1 of its 3 clips stands in train too" in said


def test_clips_are_dropped_by_their_ids_in_the_whole(bring):
    given = {"a": {"rows": A}, "b": {"rows": B | {17: ("test", "Sjutton.", "kaj")}}}
    named = ["a.1", "b.17", "b.10", "own.50"]  # one of which is left out anyway
    rows = {50: ("", "Femtio.", "x"), 51: ("", "Nytt.", "y")}
    _, folder = bring(given, {"own": {"rows": rows}}, drop={"bad": named})
    assert (ids(folder, "train"), ids(folder, "test")) == (["a.0", "b.13"], ["a.3", "b.16"])
    assert ids(folder, "probes/own") == ["own.51"]
    with pytest.raises(UserError, match=r"download\.drop\.bad: the corpus has no clip b\.99"):
        bring(given, drop={"bad": ["b.99"]})


def test_errors_name_the_source(bring):
    stale = {"rows": B, "set": {"path": "b", "digest": "0" * 64}}
    with pytest.raises(UserError, match=r"download\.corpora\.b: .*Set download\.corpora\.b\.set\.digest to it"):
        bring({"a": {"rows": A}, "b": stale})
    with pytest.raises(UserError, match=r"download\.probes\.none gives no clips: .*: empty sentence"):
        bring({"a": {"rows": A}}, {"none": {"rows": {60: ("test", "", "")}}})
