"""CTranslate2's format, which faster-whisper runs."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.asr.mel import MAX_SAMPLES
from stages.asr.model import SpeechModel, save_model
from tools.convert.vocabulary import in_whisper_shape

FILES = ["tokenizer.json", "preprocessor_config.json"]  # faster-whisper would fetch OpenAI's where they are missing


def write_ctranslate(model: SpeechModel, folder: Path, precision: str) -> None:
    """Write a folder for ``faster_whisper.WhisperModel``; raises UserError where the vocabulary does not fit."""
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as plain:
        save_model(in_whisper_shape(model), Path(plain))
        TransformersConverter(plain, copy_files=FILES).convert(str(folder), quantization=precision)


def faster_whisper_recogniser(folder: Path, language: str, task: str) -> Callable[[np.ndarray], str]:
    """faster-whisper with a converted model: a function from (n_samples,) float32 at 16 kHz, 30 s at most, to text.

    It fills a window's rest with zeros, which in a log-mel are loud; so the silence is put there before.
    """
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="default")

    def recognise(samples: np.ndarray) -> str:
        window = np.pad(samples, (0, MAX_SAMPLES - len(samples)))
        segments, _ = model.transcribe(
            window, language=language, task=task, beam_size=1, temperature=0.0, without_timestamps=True
        )
        return " ".join(segment.text.strip() for segment in segments)

    return recognise
