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


@dataclass(frozen=True)
class Sample:
    """Clips: what is said, (n_samples,) float32 at 16 kHz each, and what a model hears on windows of 30 s."""

    texts: list[str]
    audio: list[np.ndarray]
    heard: list[str]


def draw_sample(model: SpeechModel, raw: Path, n_clips: int) -> Sample:
    """So many clips of a split, at most, with what the model hears; raises UserError where one cannot be read."""
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
    return Sample(texts, audio, decode_full_windows(model, audio))


def decode_full_windows(model: SpeechModel, audio: list[np.ndarray]) -> list[str]:
    """What the model hears on windows of 30 s, in as many tokens as engines allow: half of the decoder's positions."""
    config = model.whisper.config
    mels = [log_mel(samples, config.num_mel_bins).astype(np.float32) for samples in audio]
    return decode_mels(
        replace(model, context="full"),
        [mel.shape[1] for mel in mels],
        mels.__getitem__,
        BATCH,
        lambda batches, total: ProgressBar(batches, total=total, unit="batch", desc="before"),
        lambda n_frames: config.max_target_positions // 2,
    )


def measure(model: SpeechModel, engine: Engine, folder: Path, sample: Sample) -> Comparison:
    """Let a converted model hear what the model has heard."""
    config = vars(model.whisper.generation_config)
    recognise = engine.load(folder, config["language"], config["task"])
    heard = [recognise(samples) for samples in ProgressBar(sample.audio, unit="clip", desc=engine.name)]
    differing = sum(one != other for one, other in zip(heard, sample.heard, strict=True))
    return Comparison(engine.name, wer(sample.texts, heard), wer(sample.texts, sample.heard), len(heard), differing)
