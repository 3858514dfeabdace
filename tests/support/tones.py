"""Sound files that tell which one they are, by pitch, and tables of them."""

import csv
import json
from pathlib import Path

import av
import numpy as np
import soundfile

from stages.asr.audio import read_audio

PITCH = 200  # Hz of clip 0; each next one is 20 Hz higher


def sound(number: int, seconds: float = 0.5, sample_rate: int = 16_000, n_channels: int = 1) -> np.ndarray:
    """A tone whose pitch tells its number, in the last channel alone: (n_samples, n_channels) float32."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    samples = np.zeros((len(time), n_channels), np.float32)
    samples[:, -1] = 0.5 * np.sin(2 * np.pi * (PITCH + 20 * number) * time)
    return samples


def number_of(path: Path) -> int:
    """The number that a tone tells."""
    samples = read_audio(path, 16_000)
    loudest = np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 16_000)))
    return round((loudest - PITCH) / 20)


def record(path: Path, number: int, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(number, **how), how.get("sample_rate", 16_000))


def record_with_ffmpeg(
    path: Path, number: int, codec: str, sample_rate: int, n_channels: int, seconds: float = 0.5
) -> None:
    """Write m4a, mp4 or webm as telephones and browsers do."""
    layout = "stereo" if n_channels == 2 else "mono"
    samples = sound(number, seconds, sample_rate, n_channels)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
    frame.sample_rate = sample_rate
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=sample_rate, layout=layout)
        queue = av.AudioFifo()
        for piece in av.AudioResampler(stream.format, layout, sample_rate).resample(frame):
            queue.write(piece)
        while piece := queue.read(stream.codec_context.frame_size or 960, partial=True):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def write_table(root: Path, rows: list[dict], name: str = "table.tsv", delimiter: str = "") -> Path:
    """Write rows as the suffix says, and the audio that they name: a tone of the number in its name."""
    for row in rows:
        record(root / next(value for value in row.values() if value.endswith(".wav")), numeral(row))
    path = root / name
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            how = {} if path.suffix == ".csv" else {"quoting": csv.QUOTE_NONE, "quotechar": None}
            separator = delimiter or ("," if path.suffix == ".csv" else "\t")
            writer = csv.DictWriter(file, names, delimiter=separator, **how)
            writer.writeheader()
            writer.writerows(rows)
    return path


def numeral(row: dict) -> int:
    """The number in the name of a row's audio."""
    return int(next(Path(value).stem for value in row.values() if value.endswith(".wav")))
