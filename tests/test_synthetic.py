import errno
import os
import re
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile

from stages.asr.clips import SPLITS, clean_text
from stages.corpora import synthetic
from stages.corpora.examples import N_EXAMPLES, read_examples, write_examples
from stages.params import Synthetic
from stages.runtime.errors import UserError

SETTINGS = Synthetic(train=synthetic.CLIPS_PER_PROCESS + 30, validation=24, test=32, seed=7)


def wavs(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    clips, drops = synthetic.collect(SETTINGS, folder, processes=3)
    assert drops == []
    return folder, clips


def planned(text="åsa köper bröd", voice="sv+f2"):
    return synthetic.PlannedClip("train", "train-00000", text, voice, 50, 175, level=-25, snr=30, seed=1)


def test_examples_are_the_first_test_clips_spoken_anew(corpus, tmp_path):
    folder, clips = corpus
    assert read_examples(tmp_path) == []
    write_examples(SETTINGS.seed, tmp_path)
    examples = read_examples(tmp_path)
    assert [example.text for example in examples] == [clip.text for clip in clips["test"][:N_EXAMPLES]]
    for example in examples:
        assert example.path.read_bytes() == (folder / "test/audio" / example.path.name).read_bytes()


def test_same_bytes_with_any_number_of_processes(corpus, tmp_path):
    folder, clips = corpus
    again, _ = synthetic.collect(SETTINGS, tmp_path, processes=1)
    assert again == clips
    assert wavs(tmp_path) == wavs(folder)


def test_files_are_those_of_the_clips(corpus):
    folder, clips = corpus
    listed = {f"{split}/audio/{clip.audio}" for split in SPLITS for clip in clips[split]}
    assert listed == set(wavs(folder))
    assert {split: len(clips[split]) for split in SPLITS} == {split: getattr(SETTINGS, split) for split in SPLITS}


def test_audio_is_16_khz_mono_short_audible_and_unclipped(corpus):
    folder, _ = corpus
    seconds = []
    for path in sorted(folder.rglob("*.wav")):
        assert soundfile.info(path).subtype == "PCM_16"
        samples, sample_rate = soundfile.read(path, dtype="float64")
        assert (sample_rate, samples.ndim) == (16_000, 1)
        seconds.append(len(samples) / sample_rate)
        assert 0.5 < seconds[-1] < 4.5, path
        assert 0.05 < np.abs(samples).max() < 0.95, path
        assert -32 < 10 * np.log10(np.mean(samples**2)) < -22, path
    assert 1.5 < np.mean(seconds) < 2.5


def test_edges_hold_noise_and_no_long_silence():
    samples = synthetic.render(
        np.r_[np.zeros(22050), np.full(22050, 9000), np.zeros(22050)].astype(np.int16), 22050, planned()
    )
    assert len(samples) == pytest.approx(16_000 * (1 + 2 * synthetic.MARGIN_SECONDS), abs=2)
    edge = samples[:1000].astype(float) / 32768
    assert 10 * np.log10(np.mean(edge**2)) == pytest.approx(-25 - 30, abs=1)


def test_every_sentence_comes_once():
    texts = [u.text for u in synthetic.plan_corpus(Synthetic(train=3000, validation=300, test=300, seed=1))]
    assert len(set(texts)) == len(texts) == 3600


def test_sentences_are_lower_case_swedish_words():
    plan = synthetic.plan_corpus(Synthetic(train=3000, validation=1, test=1, seed=1))
    counts = dict.fromkeys(synthetic.vocabulary(), 0)
    for u in plan:
        assert re.fullmatch(r"[a-zåäö]+( [a-zåäö]+){2,7}", u.text)
        assert u.text == clean_text(u.text)
        for word in u.text.split():
            counts[word] += 1  # a KeyError is a word that the vocabulary lacks
    assert 150 <= len(counts) <= 250
    assert min(counts.values()) > 15, min(counts, key=counts.get)
    assert all(any(letter in word for word in counts) for letter in "åäö")
    assert synthetic.count_sentences() > 20_000


def test_half_of_test_is_by_new_speakers_and_the_rest_by_known_ones(corpus):
    _, clips = corpus
    speakers = {split: [clip.speaker for clip in clips[split]] for split in SPLITS}
    assert not synthetic.KNOWN_VOICES.keys() & synthetic.NEW_VOICES.keys()
    assert set(speakers["train"]) == set(speakers["validation"]) == synthetic.KNOWN_VOICES.keys()
    assert set(speakers["test"]) == synthetic.KNOWN_VOICES.keys() | synthetic.NEW_VOICES.keys()
    assert [speaker in synthetic.NEW_VOICES for speaker in speakers["test"]] == [False, True] * (SETTINGS.test // 2)


def test_more_training_clips_leave_the_others_as_they_were():
    few, many = (synthetic.plan_corpus(Synthetic(train=n, validation=20, test=20, seed=3)) for n in (50, 400))
    assert set(few) < set(many)


def test_another_seed_gives_other_sentences():
    first, second = (
        {u.text for u in synthetic.plan_corpus(Synthetic(train=100, validation=1, test=1, seed=seed))}
        for seed in (1, 2)
    )
    assert len(first & second) < 20


def test_too_many_clips_are_refused():
    with pytest.raises(UserError, match="lower train"):
        synthetic.plan_corpus(Synthetic(train=10**6, validation=1, test=1, seed=1))


def test_every_voice_exists():
    variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    for voice in synthetic.KNOWN_VOICES | synthetic.NEW_VOICES:
        assert voice == "sv" or (variants / voice.removeprefix("sv+")).is_file(), voice


def test_long_data_path_is_shortened_and_spoken_from(tmp_path):
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    long = deep / "espeak-ng-data"
    long.symlink_to(espeakng_loader.get_data_path(), target_is_directory=True)
    (tmp_path / "train" / "audio").mkdir(parents=True)
    with synthetic.short_data_path(long) as data:
        assert len(str(data)) <= synthetic.MAX_DATA_PATH < 200 < len(str(long))
        synthetic.synthesise(tmp_path, data, [[planned()]], processes=1)
    assert (tmp_path / "train" / "audio" / "train-00000.wav").stat().st_size > 10_000
    assert not data.exists()
    assert long.exists()


def test_short_data_path_stays_as_it_is(tmp_path):
    with synthetic.short_data_path(Path("/short")) as data:
        assert data == Path("/short")


def test_an_unknown_voice_is_named(tmp_path):
    data = Path(espeakng_loader.get_data_path())
    with pytest.raises(UserError, match=r"train-00000.*nobody"), synthetic.short_data_path(data) as short:
        synthetic.synthesise(tmp_path, short, [[planned(voice="sv+nobody")]], processes=1)


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_worker_that_dies_is_an_error_and_no_hang(tmp_path):
    with pytest.raises(UserError, match=r"train-00000.*died"):
        synthetic.synthesise(tmp_path, Deadly(), [[planned()]] * 3, processes=2)


def test_a_full_disk_is_told_as_one_and_not_as_a_process_that_died(tmp_path):
    audio = tmp_path / "train/audio"
    audio.mkdir(parents=True)
    (audio / "train-00000.wav.part").symlink_to("/dev/full")
    with (
        synthetic.short_data_path(Path(espeakng_loader.get_data_path())) as data,
        pytest.raises(OSError, match="space") as told,
    ):
        synthetic.synthesise(tmp_path, data, [[planned()]], processes=1)
    assert told.value.errno == errno.ENOSPC and not any(audio.iterdir())
