"""The engines that converted models are for, and what they hear of the same clips as the model itself."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.asr.audio import TooLongError, read_audio
from stages.asr.clips import read_clips
from stages.asr.decoding import decode_mels
from stages.asr.mel import FRAMES_PER_SECOND, MAX_FRAMES, MAX_SECONDS, SAMPLE_RATE, log_mel
from stages.asr.model import SpeechModel
from stages.asr.scoring import wer
from stages.evaluate import draw
from stages.runtime.errors import UserError
from stages.runtime.progress import ProgressBar
from tools.convert.ctranslate import faster_whisper_recogniser, write_ctranslate
from tools.convert.ggml import whisper_cpp_recogniser, write_ggml
from tools.convert.onnx_files import onnx_recogniser, write_onnx

BATCH, SEED = 8, 1


@dataclass(frozen=True)
class Engine:
    """An engine for speech, the packages that write its format and that run it, by the names they are imported as.

    write: a model, a new folder and a precision. load: such a folder, a language and a task -> a function from
    (n_samples,) float32 at 16 kHz, 30 s at most, to text.
    """

    name: str
    writers: tuple[str, ...]
    runners: tuple[str, ...]
    write: Callable[[SpeechModel, Path, str], None]
    load: Callable[[Path, str, str], Callable[[np.ndarray], str]]

    def check_installed(self, runs: bool) -> None:
        """Raise UserError where a package is missing, of those that run it too where it runs."""
        for package in self.writers + self.runners * runs:
            if importlib.util.find_spec(package) is None:
                name = package.replace("_", "-")
                raise UserError(f"{name} is not installed: run `pip install -c constraints.txt -e '.[convert]'`")

    def check_window(self, model: SpeechModel) -> None:
        """Raise UserError where a model's window is not the one that every engine gives."""
        if model.window != MAX_FRAMES:
            raise UserError(
                f"the model hears {model.window / FRAMES_PER_SECOND:g} s at once, and {self.name} gives it"
                f" {MAX_SECONDS} s: train one with whisper.scratch.seconds: {MAX_SECONDS}"
            )


ENGINES = {
    "ctranslate2": Engine(
        "faster-whisper", ("ctranslate2",), ("faster_whisper",), write_ctranslate, faster_whisper_recogniser
    ),
    "ggml": Engine("whisper.cpp", (), ("pywhispercpp",), write_ggml, whisper_cpp_recogniser),
    "onnx": Engine("ONNX Runtime", ("onnx",), ("onnxruntime",), write_onnx, onnx_recogniser),
}


@dataclass(frozen=True)
class Comparison:
    """WER in percent of the same clips in an engine and by the model itself on the full window, and what differs."""

    engine: str
    converted: float
    original: float
    clips: int
    differing: int

    def __str__(self) -> str:
        return (
            f"WER {self.converted:.2f} % in {self.engine}, {self.original:.2f} % on the full window before:"
            f" {self.clips} clips, of which {self.differing} have another text"
        )


def measure(model: SpeechModel, engine: Engine, folder: Path, raw: Path, n_clips: int) -> Comparison:
    """Let a converted model, and the one it was made from, hear some clips of a split; raises UserError."""
    texts, audio = [], []
    clips = read_clips(raw)
    for place in draw(range(len(clips)), n_clips, SEED):
        try:
            samples = read_audio(raw / "audio" / clips[place].audio, SAMPLE_RATE, MAX_SECONDS)
        except TooLongError:
            continue  # featurize drops it too
        if len(samples):
            texts.append(clips[place].text)
            audio.append(samples)
    config = vars(model.whisper.generation_config)
    recognise = engine.load(folder, config["language"], config["task"])
    converted = [recognise(samples) for samples in ProgressBar(audio, unit="clip", desc=engine.name)]
    original = decode_full_windows(model, audio)
    differing = sum(one != other for one, other in zip(converted, original, strict=True))
    return Comparison(engine.name, wer(texts, converted), wer(texts, original), len(texts), differing)


def decode_full_windows(model: SpeechModel, audio: list[np.ndarray]) -> list[str]:
    """What the model hears on windows of 30 s, however long the texts get."""
    n_mels, most = model.whisper.config.num_mel_bins, model.whisper.generation_config.max_length
    mels = [log_mel(samples, n_mels).astype(np.float32) for samples in audio]
    return decode_mels(
        replace(model, context="full"),
        [mel.shape[1] for mel in mels],
        mels.__getitem__,
        BATCH,
        lambda batches, total: ProgressBar(batches, total=total, unit="batch", desc="before"),
        lambda n_frames: most,
    )
