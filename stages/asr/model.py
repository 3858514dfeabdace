"""A Whisper in a plain Hugging Face folder, with what the pipeline wants to know of it beside the weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.utils import logging

from stages.asr.encoder import allow_any_length, window_frames
from stages.asr.mel import FRAMES_PER_SECOND
from stages.asr.model_files import check_model_files
from stages.asr.shards import Shards
from stages.runtime.errors import UserError, one_line
from stages.runtime.files import files_digest

CONFIG_KEY = "viska"  # of what we add to config.json; other programs pass it by
ATTENTION = "sdpa"
START_TOKEN = "<|startoftranscript|>"


@dataclass
class SpeechModel:
    """A Whisper with its tokenizer: what transcribes.

    context: ``clip`` where the encoder was trained on each clip's own length, else ``full``, the window it must see.
    margin: frames of silence that it was trained to see after a clip, a multiple of the decoder's grid.
    untrained: fresh weights, so that its scores measure nothing but chance.
    """

    whisper: WhisperForConditionalGeneration
    tokenizer: WhisperTokenizer
    extractor: WhisperFeatureExtractor
    context: str = "full"
    margin: int = 0
    untrained: bool = False

    @property
    def window(self) -> int:
        """Frames of the full window."""
        return window_frames(self.whisper)


def load_model(folder: Path, device: torch.device | str = "cpu", **overrides: Any) -> SpeechModel:
    """Read a folder that ``save_model`` or any Whisper's ``save_pretrained`` wrote, in evaluation mode.

    overrides: values of the model's config, such as dropout, which its layers read as they are made. Raises UserError
    where it is not a Whisper in safetensors.
    """
    silence_transformers()
    folder = Path(folder)
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} contains no *.safetensors: run the stage that writes it, or `dvc pull`")
    try:
        ours = check_model_files(folder)
        read: Any = WhisperForConditionalGeneration.from_pretrained(  # a pair, which its types do not say
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            attn_implementation=ATTENTION,  # whatever the config says: it may name code on the Hub
            **overrides,
        )
        whisper: WhisperForConditionalGeneration = read[0]
        if missing := read[1]["missing_keys"]:  # transformers would fill them with random numbers
            raise ValueError(f"its weights lack {min(missing)} ({len(missing)} missing in all)")
        tokenizer = WhisperTokenizer.from_pretrained(folder)
        complete_generation(whisper)
        if tokenizer.convert_tokens_to_ids(START_TOKEN) != whisper.config.decoder_start_token_id:
            raise ValueError("its tokenizer is missing, or belongs to another model")
        extractor = WhisperFeatureExtractor.from_pretrained(folder)
    except Exception as error:  # transformers raises anything for files that are not as it expects them
        raise UserError(f"{folder} is not a Whisper model: {one_line(error)}") from None
    return SpeechModel(
        allow_any_length(read[0].to(device).eval()),
        tokenizer,
        extractor,
        ours.context,
        ours.margin,
        ours.untrained,
    )


def complete_generation(whisper: WhisperForConditionalGeneration) -> None:
    """Give a base's generation_config what decoding reads: a longest text that the decoder has places for, and tokens
    to suppress that exist, for some name -1, which is none.
    """
    config, places = whisper.generation_config, whisper.config.max_target_positions
    config.max_length = min(config.max_length or places, places)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        tokens = getattr(config, name, None)
        setattr(config, name, tokens and [token for token in tokens if token >= 0])


def silence_transformers() -> None:
    """Keep transformers from writing notes and progress bars for every folder: what matters is checked here."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    logging.set_verbosity(logging.ERROR)


def save_model(model: SpeechModel, folder: Path) -> None:
    """Write a plain Hugging Face folder; ``from_pretrained`` and ``pipeline`` need none of our code to read it."""
    silence_transformers()
    ours = {"context": model.context, "margin": model.margin, "untrained": model.untrained}
    setattr(model.whisper.config, CONFIG_KEY, ours)
    model.whisper.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    model.extractor.save_pretrained(folder)


def check_fit(model: SpeechModel, shards: Shards, folder: str | Path) -> None:
    """Raise UserError where the features in ``folder`` are not what the model expects."""
    n_mels = model.whisper.config.num_mel_bins
    if shards.n_mels != n_mels:
        raise UserError(
            f"{folder} has {shards.n_mels} mel bins, and the model expects {n_mels}: set featurize.n_mels: {n_mels}"
        )
    longest = max(shards.entries, key=lambda entry: entry.seconds)
    seconds = model.window / FRAMES_PER_SECOND
    if longest.seconds > seconds:
        raise UserError(
            f"clip {longest.id} in {folder} lasts {longest.seconds:.1f} s, and the model takes at most {seconds:g} s at"
            f" once: lower featurize.max_seconds, or raise whisper.scratch.seconds"
        )


def folder_digest(folder: Path) -> str:
    """SHA-256 over a model folder's files, by name: 64 hex digits."""
    return files_digest({path.name: path for path in Path(folder).iterdir() if path.is_file()})
