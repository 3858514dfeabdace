"""How likely a model finds each clip's text beside what it hears itself: where wrong transcripts lie."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from stages.asr.audio import AudioError, read_audio
from stages.asr.batches import IGNORED, collate, label_tokens
from stages.asr.decoding import context_frames, greedy_search, token_limit
from stages.asr.device import best_device, quick_precision
from stages.asr.labels import LabelStyle, LabelWriter
from stages.asr.mel import FRAMES_PER_SECOND, SAMPLE_RATE, log_mel, pad_or_trim
from stages.asr.model import START_TOKEN, SpeechModel, load_model
from stages.runtime.errors import UserError
from stages.runtime.pool import parallel_map
from stages.runtime.progress import ProgressBar


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of a clip. heard: its own text; nats: by how much it finds that likelier than the label."""

    heard: str
    nats: float


@dataclass(frozen=True)
class Scoring:
    """How texts are scored: labels in the style that training gives them, so many clips at once, mels by processes."""

    style: LabelStyle
    batch_size: int
    processes: int | None


def load_trained(folder: Path) -> SpeechModel:
    """The model in a folder; raises UserError where it is no Whisper, or has fresh weights."""
    model = load_model(folder, best_device())
    if model.untrained:
        raise UserError(f"{folder} was never trained: give a model that knows speech, such as models/tuned")
    return model


def score_texts(
    model: SpeechModel, paths: Sequence[Path], texts: Sequence[str], seconds: Sequence[float], scoring: Scoring
) -> list[Likelihood | None]:
    """What a model makes of clips, in their order; None where it cannot hear or be taught one.

    seconds: of each clip; what is longer than the model's window is left out.
    """
    writer = LabelWriter(model, scoring.style)
    most = model.whisper.config.max_target_positions
    labels = [label_tokens(model, written) if (written := writer.write(text)) else None for text in texts]
    usable = [
        number
        for number, label in enumerate(labels)
        if label is not None and len(label) <= most and seconds[number] * FRAMES_PER_SECOND <= model.window
    ]
    usable.sort(key=lambda number: (seconds[number], number))  # like lengths together
    found: list[Likelihood | None] = [None] * len(paths)
    n_mels = model.whisper.config.num_mel_bins
    mels = zip(
        usable,
        parallel_map(partial(read_mel, n_mels=n_mels), [paths[number] for number in usable], scoring.processes),
        strict=True,
    )
    rows = iter(ProgressBar(mels, total=len(usable), unit="clip", desc="model"))
    while batch := list(islice(rows, scoring.batch_size)):
        heard = [
            (number, mel, label) for number, mel in batch if mel is not None and (label := labels[number]) is not None
        ]
        if heard:
            numbers, batch_mels, batch_labels = zip(*heard, strict=True)
            with quick_precision(model.whisper.device):
                found_here = [*score_batch(model, batch_mels, batch_labels)]
            for number, likelihood in zip(numbers, found_here, strict=True):
                found[number] = likelihood
    return found


def read_mel(path: Path, n_mels: int) -> np.ndarray | None:
    """The scaled log-mel of a file, (n_mels, n_frames) float32; None where it cannot be read."""
    try:
        return log_mel(read_audio(path, SAMPLE_RATE), n_mels).astype(np.float32)
    except (AudioError, OSError, ValueError):
        return None


@torch.inference_mode()
def score_batch(model: SpeechModel, mels: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Iterator[Likelihood]:
    """Of clips of like length, (n_mels, n_frames) float32 each, and their labels, (n_tokens,) int64 each."""
    longest = max(mel.shape[1] for mel in mels)
    window = torch.from_numpy(np.stack([pad_or_trim(mel, context_frames(model, longest)) for mel in mels]))
    rows = greedy_search(model, window, token_limit(longest))
    heard = [np.array([*label[:3], *row, label[-1]]) for label, row in zip(labels, rows, strict=True)]
    encoded = model.whisper.model.encoder(window.to(model.whisper.device)).last_hidden_state
    losses = [text_losses(model, encoded, window, texts) for texts in (labels, heard)]
    texts = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
    for text, label_loss, heard_loss in zip(texts, *losses, strict=True):
        yield Likelihood(" ".join(text.split()), label_loss - heard_loss)


def text_losses(
    model: SpeechModel, encoded: torch.Tensor, mels: torch.Tensor, labels: Sequence[np.ndarray]
) -> list[float]:
    """Nats that the decoder loses on each text: encoded (batch, n_positions, width), labels (n_tokens,) int64."""
    start = model.tokenizer.convert_tokens_to_ids(START_TOKEN)
    batch = collate(
        [
            {"input_features": mel.numpy(), "decoder_input_ids": np.array([start, *label[:-1]]), "labels": label}
            for mel, label in zip(mels, labels, strict=True)
        ]
    )
    device = model.whisper.device
    hidden = model.whisper.model.decoder(
        input_ids=batch["decoder_input_ids"].to(device), encoder_hidden_states=encoded
    ).last_hidden_state
    logits = model.whisper.proj_out(hidden).float()
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch["labels"].to(device), ignore_index=IGNORED, reduction="none"
    )
    return [float(loss) for loss in losses.sum(dim=1)]
