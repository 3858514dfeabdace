"""A Whisper in a plain Hugging Face folder, with what the pipeline wants to know of it beside the weights."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.utils import logging

from stages.asr.encoder import allow_any_length, window_frames
from stages.asr.errors import UserError, one_line
from stages.asr.mel import FRAMES_PER_SECOND
from stages.asr.shards import Shards

NOTE = "viska"  # key of our note in config.json; other programs pass it by
START = "<|startoftranscript|>"


@dataclass
class Checkpoint:
    """A model with its tokenizer.

    context: ``clip`` where the encoder was trained on each clip's own length, else ``full``, the window it must see.
    untrained: fresh weights, so that its scores measure nothing but chance.
    """

    model: WhisperForConditionalGeneration
    tokenizer: WhisperTokenizer
    extractor: WhisperFeatureExtractor
    context: str = "full"
    untrained: bool = False

    @property
    def window(self) -> int:
        """Frames of the full window."""
        return window_frames(self.model)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu", **overrides: float) -> Checkpoint:
    """Read a folder that ``save_checkpoint`` or any Whisper's ``save_pretrained`` wrote, in evaluation mode.

    overrides: values of the model's config, such as dropout, which its layers read as they are made. Raises UserError
    where it is no Whisper in safetensors.
    """
    quiet()
    folder = Path(folder)
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no *.safetensors: run the stage that writes it, or `dvc pull`")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        if kind != "whisper":
            raise ValueError(f"its config.json is of the type {kind}")
        model, loaded = WhisperForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **overrides
        )
        if missing := loaded["missing_keys"]:  # transformers would fill them with chance
            raise ValueError(f"its weights lack {min(missing)}, {len(missing)} in all")
        tokenizer = WhisperTokenizer.from_pretrained(folder)
        if tokenizer.convert_tokens_to_ids(START) != model.config.decoder_start_token_id:
            raise ValueError("its tokenizer is missing or another model's")
        extractor = WhisperFeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} is no Whisper's folder: {one_line(error)}") from None
    note = getattr(model.config, NOTE, None) or {}
    return Checkpoint(
        allow_any_length(model).to(device).eval(),
        tokenizer,
        extractor,
        note.get("context", "full"),
        note.get("untrained", False),
    )


def quiet() -> None:
    """Spare people transformers' notes and bars for every folder: what matters here is checked and said by us."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a plain Hugging Face folder; ``from_pretrained`` and ``pipeline`` need none of our code to read it."""
    quiet()
    setattr(checkpoint.model.config, NOTE, {"context": checkpoint.context, "untrained": checkpoint.untrained})
    checkpoint.model.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    checkpoint.extractor.save_pretrained(folder)


def check_fit(checkpoint: Checkpoint, shards: Shards, folder: Path) -> None:
    """Raise UserError where the features in ``folder`` are not what the model hears."""
    n_mels = checkpoint.model.config.num_mel_bins
    if shards.n_mels != n_mels:
        raise UserError(
            f"{folder} has {shards.n_mels} mel bins, the model hears {n_mels}: set featurize.n_mels: {n_mels}"
        )
    longest = max(shards.entries, key=lambda entry: entry.seconds)
    seconds = checkpoint.window / FRAMES_PER_SECOND
    if longest.seconds > seconds:
        raise UserError(
            f"clip {longest.id} in {folder} lasts {longest.seconds:.1f} s; the model hears {seconds:g} s at once: "
            f"lower featurize.max_seconds, or raise whisper.scratch.seconds"
        )


def folder_digest(folder: Path) -> str:
    """SHA-256 over a model folder's files, by name: 64 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def best_device() -> torch.device:
    """The accelerator where there is one."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")
