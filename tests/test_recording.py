import resource
import struct
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soundfile

from stages.asr.audio import AudioError, read_audio
from stages.asr.recording import Recording, open_recording
from tests.support.material import speech
from tests.support.tones import number_of, record, record_with_ffmpeg

HOUR = 3600


def read(path, max_seconds: float = HOUR) -> np.ndarray:
    with open_recording(path, max_seconds) as recording:
        return np.concatenate(list(recording.blocks()))


def wav(seconds_claimed: float, seconds: float) -> bytes:
    """Silence at 16 kHz in 16 bits under a header that says something else."""
    n_bytes = round(seconds_claimed * 32_000)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    head = b"RIFF" + struct.pack("<I", (36 + n_bytes) % 2**32) + b"WAVE" + form + b"data" + struct.pack("<I", n_bytes)
    return head + bytes(round(seconds * 32_000))


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize(
    ("suffix", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "PCM_U8"), ("flac", "PCM_24")]
)
def test_the_samples_are_read_audios(tmp_path, sample_rate, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    sound = np.stack([speech(3.3, seed)[: 3 * 16_000 + 7] for seed in (1, 2)], axis=1)
    soundfile.write(path, sound, sample_rate, subtype)
    whole = read_audio(path, 16_000)
    ours = read(path)
    assert ours.dtype == np.float32
    assert ours.shape == whole.shape
    assert np.abs(ours - whole).max() <= 1e-6


def test_blocks_are_about_a_second(tmp_path):
    record(tmp_path / "a.wav", 1, seconds=5.5, sample_rate=48_000)
    with open_recording(tmp_path / "a.wav", HOUR) as recording:
        assert recording.seconds == pytest.approx(5.5)
        sizes = [len(block) for block in recording.blocks()]
    assert sum(sizes) == 5.5 * 16_000
    assert all(16_000 <= size < 20_000 for size in sizes[:-1])


@pytest.mark.parametrize(
    ("name", "codec", "sample_rate"),
    [
        ("a.m4a", "aac", 48_000),
        ("a.mp4", "aac", 44_100),
        ("a.webm", "libopus", 48_000),
        ("a.ogg", "libopus", 48_000),
        ("a.mp3", "libmp3lame", 44_100),
        ("a.mkv", "flac", 22_050),
    ],
)
def test_what_people_have_is_read_whatever_its_suffix(tmp_path, name, codec, sample_rate):
    record_with_ffmpeg(tmp_path / name, 3, codec, sample_rate, 2)
    samples = read(tmp_path / name)
    assert len(samples) == pytest.approx(8_000, abs=1_100)  # the codec's own margin
    soundfile.write(tmp_path / "again.wav", samples, 16_000)
    assert number_of(tmp_path / "again.wav") == 3
    other = (tmp_path / name).rename(tmp_path / "a.wav")
    assert np.array_equal(read(other), samples)


def test_a_video_gives_its_sound(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        pictures, sound = (
            container.add_stream("mpeg4", rate=10),
            container.add_stream("aac", rate=16_000, layout="mono"),
        )
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        for _ in range(10):
            black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(pictures.encode(black))
            tone = av.AudioFrame.from_ndarray(np.full((1, 1024), 0.1, np.float32), format="fltp", layout="mono")
            tone.sample_rate = 16_000
            container.mux(sound.encode(tone))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))
    assert len(read(tmp_path / "a.mp4")) == pytest.approx(10_240, abs=1_100)


def test_a_video_without_sound_says_so(tmp_path):
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        container.mux(pictures.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(pictures.encode(None))
    with pytest.raises(AudioError, match=r"^mute\.mp4 contains no audio: choose a file with an audio track$"):
        open_recording(tmp_path / "mute.mp4", HOUR)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF\x00\x00",
        b"<html>not found</html>" * 100,
        bytes(100_000),
        wav(0, 0),
        b"ffconcat version 1.0\nfile other.wav\n",
        b"#EXTM3U\n#EXTINF:1,\nother.wav\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ],
)
@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
def test_what_is_no_sound_is_named_without_its_folder(tmp_path, capfd, content, suffix):
    soundfile.write(tmp_path / "other.wav", speech(1), 16_000)
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=rf"^clip\.{suffix} is not a readable audio or video file: ") as error:
        read(path)
    assert str(tmp_path) not in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_noise_that_passes_for_an_mp3_ends_well(tmp_path, capfd):
    (tmp_path / "a.mp3").write_bytes(np.random.default_rng(1).bytes(100_000))
    found = ""
    try:
        assert np.isfinite(read(tmp_path / "a.mp3")).all()
    except AudioError as error:
        found = str(error)
    assert not found or found.startswith("a.mp3 is not a readable")
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "gone.wav", tmp_path):
        with pytest.raises(AudioError, match=f"^{path.name} is not a readable"):
            open_recording(path, HOUR)


def test_a_name_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http:a.wav", "concat:a.wav|b.wav", "pipe:0", "åäö % s.wav"):
        record(tmp_path / name, 2) if name.endswith("wav") else (tmp_path / name).write_bytes(wav(1, 1))
        assert len(read(Path(name))) in (8_000, 16_000)


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.webm", "libopus"), ("a.flac", "flac")])
def test_a_file_that_was_cut_off_gives_what_is_there(tmp_path, capfd, name, codec):
    record_with_ffmpeg(tmp_path / name, 3, codec, 48_000, 1)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    assert 1_500 < len(read(tmp_path / name)) < 7_500
    assert capfd.readouterr() == ("", "")


def test_damage_in_the_middle_costs_that_place_alone(tmp_path, capfd):
    sound = speech(10)
    soundfile.write(tmp_path / "a.flac", sound, 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    (tmp_path / "a.flac").write_bytes(data)
    samples = read(tmp_path / "a.flac")
    assert 8 * 16_000 < len(samples) <= 10 * 16_000
    assert np.abs(samples[-16_000:] - sound[-16_000:]).max() < 1e-3
    assert capfd.readouterr() == ("", "")


def test_a_header_that_claims_too_much_is_refused_at_once(tmp_path):
    soundfile.write(tmp_path / "a.flac", speech(1), 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    samples = 10 * HOUR * 16_000  # in the 36 bits at the end of STREAMINFO's first 18 bytes
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = struct.pack(">I", samples & 0xFFFFFFFF)
    (tmp_path / "a.flac").write_bytes(data)
    sentence = r"^a\.flac lasts 10:00:00, longer than 4:00:00, the most that is transcribed at once: cut it into"
    with pytest.raises(AudioError, match=sentence):
        open_recording(tmp_path / "a.flac", 4 * HOUR)
    assert len(read(tmp_path / "a.flac", 11 * HOUR)) == 16_000  # nor is it believed


@pytest.mark.parametrize("claim", [0, 1, 36_000])
def test_a_wrong_wav_header_is_not_believed(tmp_path, claim):
    (tmp_path / "a.wav").write_bytes(wav(claim, 3))
    assert 0 < len(read(tmp_path / "a.wav")) <= 3 * 16_000


def test_a_stream_that_goes_on_too_long_ends_with_a_sentence(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000 * 60), 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # samples unknown, as where a recorder streamed it
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    with open_recording(tmp_path / "a.flac", 20.5) as recording:
        blocks = recording.blocks()
        heard = sum(len(next(blocks)) for _ in range(18))
        assert heard <= 20.5 * 16_000
        with pytest.raises(
            AudioError, match=r"^a\.flac lasts longer than 0:00:20, the most that is transcribed at once"
        ):
            list(blocks)


def test_memory_does_not_grow_with_the_file(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 16_000, 1) as file:
        for _ in range(90):
            file.write(np.zeros(60 * 16_000))
    process = psutil.Process()
    with open_recording(tmp_path / "a.flac", 4 * HOUR) as recording:
        blocks = recording.blocks()
        next(blocks)
        before = process.memory_info().rss
        assert sum(map(len, blocks)) > 5_000 * 16_000  # 346 MB of samples
    assert process.memory_info().rss - before < 32 * 2**20


def test_an_index_of_gigabytes_is_not_made(tmp_path):
    record_with_ffmpeg(tmp_path / "a.m4a", 3, "aac", 48_000, 1)
    data = bytearray((tmp_path / "a.m4a").read_bytes())
    n = 60_000_000
    struct.pack_into(">II", data, data.index(b"stsz") + 8, 1, n)  # of one byte each,
    struct.pack_into(">II", data, data.index(b"stts") + 12, n, 0)  # of no duration,
    struct.pack_into(">III", data, data.index(b"stsc") + 8, 1, 1, n)  # all in the first chunk
    (tmp_path / "a.m4a").write_bytes(data)
    before = peak()
    with pytest.raises(AudioError, match=r"^a\.m4a is not a readable"):
        read(tmp_path / "a.m4a")
    assert peak() - before < 256 * 2**20


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_rate_that_changes_midway_is_followed():
    class Changing(Recording):
        def __init__(self):
            self._name, self._max_seconds = "a", HOUR

        def _frames(self):
            yield from (
                (np.zeros(n, np.float32), rate) for n, rate in [(24_000, 48_000), (8_000, 16_000), (4_000, 8_000)]
            )

    assert sum(map(len, Changing().blocks())) == pytest.approx(1.5 * 16_000, abs=2)
