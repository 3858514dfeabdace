import tracemalloc

import librosa
import numpy as np
import pytest
import soundfile

from stages.asr.audio import AudioError, TooLongError, read_audio
from stages.asr.recording import open_recording
from tests.support.material import speech, with_sample
from tests.support.tones import number_of, record_with_ffmpeg


@pytest.mark.parametrize(
    ("name", "sample_rate", "channels", "n_samples"),
    [("a.wav", 44_100, 2, 30_000), ("a.flac", 22_050, 1, 30_000), ("a.wav", 16_000, 1, 20_000), ("a.wav", 8_000, 1, 1)],
)
def test_samples_are_librosas(tmp_path, name, sample_rate, channels, n_samples):
    sound = np.stack([speech(3, seed=seed)[:n_samples] for seed in range(channels)], axis=1)
    soundfile.write(tmp_path / name, sound, sample_rate, "PCM_16")
    ours = read_audio(tmp_path / name, 16_000)
    theirs, _ = librosa.load(tmp_path / name, sr=16_000)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs[: len(ours)]).max() <= 1e-6
    assert len(theirs) - len(ours) in (0, 1)  # librosa rounds a fraction of a sample up, and fills it with silence
    assert not theirs[len(ours) :].any()


def test_a_sound_file_without_samples_gives_none(tmp_path):
    for sample_rate in (16_000, 44_100):
        soundfile.write(tmp_path / "a.wav", np.zeros(0), sample_rate)
        assert read_audio(tmp_path / "a.wav", 16_000).shape == (0,)


def test_a_file_called_raw_is_what_it_holds(tmp_path):
    path = tmp_path / "a.raw"
    soundfile.write(tmp_path / "a.wav", speech(1), 16_000)
    (tmp_path / "a.wav").rename(path)
    assert read_audio(path, 16_000).shape == speech(1).shape
    path.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(AudioError, match=f"{path} is not a readable audio file"):
        read_audio(path, 16_000)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, b"RIFF\x00\x00"])
def test_what_is_not_audio_is_named(tmp_path, content):
    path = tmp_path / "clip.mp3"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"{path} is not a readable audio file"):
        read_audio(path, 16_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_finite_numbers_are_named(tmp_path, value):
    sound = np.stack([speech(1), with_sample(speech(1), value)], axis=1)
    soundfile.write(tmp_path / "a.wav", sound, 44_100, "FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav is not a readable audio file: .*NaN or infinite$"):
        read_audio(tmp_path / "a.wav", 16_000)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AudioError, match=f"{tmp_path / 'gone.wav'} is not a readable audio file"):
        read_audio(tmp_path / "gone.wav", 16_000)


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus")])
def test_what_telephones_record_is_read_too(tmp_path, name, codec):
    record_with_ffmpeg(tmp_path / name, 3, codec, 48_000, 2)
    assert number_of(tmp_path / name) == 3
    assert len(read_audio(tmp_path / name, 16_000)) == pytest.approx(8_000, abs=1_100)  # the codec's own margin


@pytest.mark.parametrize("content", ["ffconcat version 1.0\nfile other.wav\n", "#EXTM3U\n#EXTINF:1,\nother.wav\n"])
def test_a_playlist_opens_no_other_file(tmp_path, content):
    soundfile.write(tmp_path / "other.wav", speech(1), 16_000)
    (tmp_path / "list.m4a").write_text(content)
    with pytest.raises(AudioError, match=r"list\.m4a is not a readable audio file"):
        read_audio(tmp_path / "list.m4a", 16_000)


def test_what_lasts_too_long_is_refused_by_its_header(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 96_000, 8, "PCM_16") as file:
        for _ in range(40):
            file.write(np.zeros((96_000, 8), np.int16))
    assert (tmp_path / "a.flac").stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(TooLongError) as refusal:
        read_audio(tmp_path / "a.flac", 16_000, max_seconds=30)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000  # its samples would be 123 MB
    tracemalloc.stop()
    assert refusal.value.seconds == 40


def test_what_lasts_too_long_without_saying_so_is_decoded_no_further(tmp_path):
    record_with_ffmpeg(tmp_path / "a.webm", 3, "libopus", 48_000, 2, seconds=5)
    with pytest.raises(TooLongError) as refusal:
        read_audio(tmp_path / "a.webm", 16_000, max_seconds=1)
    assert 1 < refusal.value.seconds < 1.1


@pytest.mark.parametrize("sample_rate", [1, 3_999, 1_000_000])
def test_rates_that_no_recorder_has_are_refused(tmp_path, sample_rate):
    soundfile.write(tmp_path / "a.wav", speech(1), sample_rate)
    with pytest.raises(AudioError, match=rf"it has {sample_rate} samples a second"):
        read_audio(tmp_path / "a.wav", 16_000)
    with pytest.raises(AudioError, match=rf"a\.wav .* it has {sample_rate} samples a second"):
        open_recording(tmp_path / "a.wav", 60)
