"""Clips that people give, as the download stage's ``folder`` corpus reads them."""

import errno
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile

from app import corpus
from app.corpus import CORRECTED, READ_ALOUD, Saved, save_clip, sentences_to_read
from app.sentences import SENTENCES
from stages.asr.clips import SPLITS, clean_text
from stages.corpora import folder as corpora
from stages.params import load_params
from stages.runtime.errors import UserError
from tests.support.material import ROOT
from tests.support.tones import number_of, record, record_with_ffmpeg, write_table
from tools import recipe

SPEAKER = "b3c1f0aa"
WORDS = "Min röst får användas för att träna modellen"
COMMAND = "python -m tools.recipe set --set download.corpus=folder --set download.folder.path=recordings"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the clips go, ``recordings`` among the user's data."""
    monkeypatch.setenv("VISKA_DATA", str(tmp_path))
    return tmp_path / "recordings"


@pytest.fixture
def params(tmp_path) -> Path:
    return shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")


@pytest.fixture
def save(folder, params, tmp_path) -> Callable[..., Saved]:
    """Call with a number: save a tone that tells it, and a text that ends in it."""

    def save(number: int = 0, audio: Path | None = None, text: str | None = None, **values) -> Saved:
        if audio is None:
            audio = tmp_path / f"{number}.wav"
            record(audio, number)
        values = {"speaker": SPEAKER, "source": READ_ALOUD, "consent": WORDS} | values
        return save_clip(folder, audio, text if text is not None else f"Mening {number}.", params=params, **values)

    return save


def read(folder: Path, params: Path) -> list:
    """The clips that the download stage makes of the folder, which must be pinned."""
    download = load_params(params).download
    raw = folder.parent / f"raw-{len(list(folder.parent.glob('raw-*')))}"
    clips, drops = corpora.collect(download.folder, raw, 1)
    assert not drops
    for split in SPLITS:
        for clip in clips[split]:
            assert clip.text == f"Mening {number_of(raw / split / 'audio' / clip.audio)}."
    return [clip for split in SPLITS for clip in clips[split]]


def test_the_pipeline_reads_what_was_saved(folder, params, save):
    saved = [save(number, speaker=f"speaker-{number}") for number in range(4)]
    assert saved == [Saved(number, COMMAND) for number in (1, 2, 3, 4)]
    recipe.apply_values(params, recipe.flatten_settings(tuple(COMMAND.split()[5::2])))  # as the command does
    assert {clip.speaker for clip in read(folder, params)} == {f"speaker-{number}" for number in range(4)}


def test_the_next_repro_notices_a_new_clip(folder, params, save):
    save(1)
    recipe.apply_values(params, recipe.flatten_settings(tuple(COMMAND.split()[5::2])))
    before = params.read_text()
    assert save(2) == Saved(2, None)
    after = params.read_text()
    changed = [pair for pair in zip(before.split("\n"), after.split("\n"), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1
    assert f"digest: {corpora.recordings_digest(folder)} #" in changed[0][1]
    assert len(read(folder, params)) == 2


def write_digest(params: Path, value: str) -> str:
    """Have the pipeline read the folder, with a digest that is written like this."""
    text = params.read_text().replace("corpus: synthetic", "corpus: folder")
    params.write_text(re.sub(r"digest: null +(?=# of the recordings)", f"digest:{value} ", text))
    return params.read_text()


@pytest.mark.parametrize(
    "value", [" null         ", " 0123abcd", "", " 'abcd0123'", " !!str\n      abcd0123", f" {'a' * 64}"]
)
def test_the_digest_takes_its_place_in_params(folder, params, save, value):
    before = write_digest(params, value).split("\n")
    assert save() == Saved(1, None)
    assert load_params(params).download.folder.digest == corpora.recordings_digest(folder)
    after = params.read_text().split("\n")
    place = next(at for at, line in enumerate(before) if "digest:" in line)
    end = len(before) - place - value.count("\n") - 1
    assert (after[:place], after[place + 1 :]) == (before[:place], before[len(before) - end :])
    assert re.search(r"digest: '?[0-9a-f]{64}'? # of the recordings", "\n".join(after))


def test_where_params_cannot_be_written_a_person_is_asked_to_write_the_digest(folder, params, save):
    before = write_digest(params, " null")
    params.with_name("params.yaml.part").mkdir()  # where it is written first
    with pytest.raises(UserError, match=r"The recording was saved; write download\.folder\.digest: [0-9a-f]{64} into"):
        save()
    assert params.read_text() == before


def test_another_folder_is_not_pinned(folder, params, save):
    text = params.read_text().replace("corpus: synthetic", "corpus: folder").replace("path: recordings", "path: others")
    params.write_text(text)
    assert save() == Saved(1, COMMAND)
    assert params.read_text() == text


def test_a_whole_path_is_named_where_the_folder_lies_elsewhere(folder, params, save, monkeypatch, tmp_path):
    monkeypatch.setenv("VISKA_DATA", str(tmp_path / "data"))
    assert (
        save().command == f"python -m tools.recipe set --set download.corpus=folder --set download.folder.path={folder}"
    )


def test_many_at_once_lose_nothing(folder, params, save):
    recipe.apply_values(params, {"download.corpus": "folder", "download.folder.digest": "0" * 64})
    with ThreadPoolExecutor(20) as pool:
        saved = list(pool.map(lambda number: save(number, speaker=f"speaker-{number % 5}"), range(20)))
    assert {one.n_clips for one in saved} == set(range(1, 21))
    assert sorted(clip.text for clip in read(folder, params)) == sorted(f"Mening {number}." for number in range(20))


def test_other_processes_wait_too(folder, params, save, tmp_path):
    record(tmp_path / "9.wav", 9)
    code = (
        "import sys; from pathlib import Path; from app.corpus import *; print(flush=True);"
        "folder, audio, params = map(Path, sys.argv[1:]);"
        f"[save_clip(folder, audio, 'Mening 9.', {SPEAKER!r}, READ_ALOUD, 'ja', params) for _ in range(20)]"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "9.wav"), str(params)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # it has begun
        for _ in range(20):
            save(1)
    assert process.returncode == 0
    assert [row[1] for row in corpus.read_recordings(folder)].count("Mening 9.") == 20
    assert len(corpus.read_recordings(folder)) == len(list((folder / "clips").iterdir())) == 40


def test_audio_is_kept_as_it_came(folder, save, tmp_path):
    record(tmp_path / "a.wav", 1, sample_rate=48_000, n_channels=2)
    record_with_ffmpeg(tmp_path / "b.webm", 2, "libopus", 48_000, 1)
    record_with_ffmpeg(tmp_path / "C.M4A", 3, "aac", 44_100, 2)
    for name in ("a.wav", "b.webm", "C.M4A"):
        save(audio=tmp_path / name)
    kept = [folder / row[0] for row in corpus.read_recordings(folder)]
    assert [path.suffix for path in kept] == [".wav", ".webm", ".m4a"]
    assert [path.read_bytes() for path in kept] == [
        (tmp_path / name).read_bytes() for name in ("a.wav", "b.webm", "C.M4A")
    ]
    assert not {path.stem for path in kept} & {"a", "b", "C"}  # nobody's file names, and none to guess
    assert set(folder.rglob("*")) == {folder / "recordings.tsv", folder / ".lock", folder / "clips", *kept}


def test_the_table_tells_where_a_text_comes_from(folder, save):
    save(1, text="  Hallå\tdär,\r\n va\u030ad\x00 säger\ud800 du?  ", source=CORRECTED, consent="Ja,\n gärna")
    header, row = (folder / "recordings.tsv").read_text("utf-8").split("\n")[:2]
    assert header == "path\ttext\tspeaker\tsource\tconsent"
    assert row.split("\t")[1:] == ["Hallå där, våd säger du?", SPEAKER, "corrected", "Ja, gärna"]


@pytest.mark.parametrize("text", ["", "  \n", "...", "[musik]", "\x00"])
def test_a_text_says_something(save, text):
    with pytest.raises(UserError, match="write what is said"):
        save(text=text)


def test_a_text_fits_one_clip(save):
    save(text="å" * 448)
    with pytest.raises(UserError, match=r"449 characters.* at most 448"):
        save(text="å" * 449)


@pytest.mark.parametrize(
    "speaker", ["", "kort", "a" * 65, "åttabokstäver", "../../../x", "a b c d e", "abcdefgh\n", "abc\tdefgh"]
)
def test_a_speaker_is_a_plain_token(save, speaker):
    with pytest.raises(UserError, match="no valid id"):
        save(speaker=speaker)


@pytest.mark.parametrize("consent", ["", " ", "\x00"])
def test_nothing_is_kept_without_consent(folder, save, consent):
    with pytest.raises(UserError, match="agree first that it may be used"):
        save(consent=consent)
    assert not folder.exists()


def silence(path: Path, seconds: float) -> Path:
    soundfile.write(path, [0.0] * round(16_000 * seconds), 16_000)
    return path


def test_audio_that_training_would_drop_is_refused(folder, save, tmp_path):
    (tmp_path / "no.wav").write_bytes(b"RIFF and no more")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "list.mp3").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    for name in ("no.wav", "empty.wav", "list.mp3"):
        with pytest.raises(UserError, match=f"{name} is not a readable audio"):
            save(audio=tmp_path / name)
    with pytest.raises(UserError, match=r"too short \(0\.20 s"):
        save(audio=silence(tmp_path / "short.wav", 0.2))
    with pytest.raises(UserError, match="lasts more than 30 s"):
        save(audio=silence(tmp_path / "long.flac", 31))
    assert not folder.exists()
    save(audio=silence(tmp_path / "just.wav", 0.3))
    save(audio=silence(tmp_path / "still.wav", 30))


def test_somebodys_own_corpus_is_left_alone(folder, save):
    write_table(folder, [{"path": "1.wav", "text": "Mening 1."}], "mine.csv")
    before = set(folder.rglob("*"))
    with pytest.raises(UserError, match=r"holds another corpus \(mine\.csv\)"):
        save()
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace("speaker", "who"), "line 1: path, text, who"),
        (lambda text: text + "clips/x.wav\tbara två\n", "line 3: 2 columns"),
    ],
)
def test_a_table_that_was_changed_is_not_written_over(folder, save, damage, said):
    save()
    table = folder / "recordings.tsv"
    changed = damage(table.read_text())
    table.write_text(changed)
    with pytest.raises(UserError, match=said):
        save()
    assert table.read_text() == changed
    assert len(list((folder / "clips").iterdir())) == 1


def test_a_folder_that_cannot_be_written(folder, save):
    folder.write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        save()


def test_a_stop_midway_leaves_a_sound_corpus(folder, params, save, monkeypatch):
    recipe.apply_values(params, {"download.corpus": "folder", "download.folder.digest": "0" * 64})
    save(1)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save(2)
    save(3)
    assert sorted(clip.text for clip in read(folder, params)) == ["Mening 1.", "Mening 3."]


def test_saving_says_nothing_on_the_terminal(params, save, capfd):
    recipe.apply_values(params, {"download.corpus": "folder", "download.folder.digest": "0" * 64})
    save()
    assert capfd.readouterr() == ("", "")


def test_sentences_that_were_read_least_come_first(folder, save):
    first, second, *_, last = sentences_to_read(folder, "sv", SPEAKER)
    assert [first, second] == list(SENTENCES["sv"][:2])
    save(text=first)
    assert sentences_to_read(folder, "sv", SPEAKER)[0] == second
    assert sentences_to_read(folder, "sv", SPEAKER)[-1] == first
    save(text=second, speaker="somebody-else")
    assert sentences_to_read(folder, "sv", SPEAKER)[-2:] == [second, first]
    assert sentences_to_read(folder, "sv", "somebody-else")[-2:] == [first, second]
    assert last in sentences_to_read(folder, "sv", SPEAKER)
    assert sentences_to_read(folder, "fi", SPEAKER) == []


def test_sentences_are_fit_to_be_read():
    assert {language: len(texts) for language, texts in SENTENCES.items()} == {"sv": 40, "en": 20}
    for texts in SENTENCES.values():
        assert len(set(texts)) == len(texts)
        assert all(clean_text(text) == text and len(text) < 80 for text in texts)
        assert all(text[-1] in ".?!" for text in texts)
    swedish = "".join(SENTENCES["sv"]).lower()
    assert min(swedish.count(letter) for letter in "åäöcghjklmnprstvxy") > 0


def test_a_disk_that_is_full_leaves_no_clip_without_its_row(save, folder, monkeypatch):
    save(1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpus, "write_table", full)  # the last thing that is written
    with pytest.raises(UserError, match=r"was not saved: .* cannot be written: No space left on device"):
        save(2)
    monkeypatch.undo()
    assert len(list((folder / "clips").iterdir())) == len(corpus.read_recordings(folder)) == 1
    assert save(2).n_clips == 2


@pytest.mark.parametrize("text", ["=1+1 ett", "+ett", "-ett", "@ett", " = -ett", '=HYPERLINK("http://x") ett'])
def test_no_text_is_a_formula_of_a_spreadsheet(save, folder, text):
    save(1, text=text)
    (row,) = corpus.read_recordings(folder)
    assert row[1][0] not in "=+-@" and row[1].endswith("ett")
