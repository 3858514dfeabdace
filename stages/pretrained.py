"""The base model -> models/pretrained: from the Hub, from a folder, or fresh from scratch."""

import json
import shutil
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.modeling_whisper import sinusoids
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from stages.asr.encoder import STRIDE, TIMESTAMP_SECONDS
from stages.asr.mel import FRAMES_PER_SECOND
from stages.asr.model import SpeechModel, check_fit, folder_digest, load_model, save_model
from stages.asr.shards import Shards
from stages.params import Scratch, Whisper, load_params
from stages.runtime.errors import UserError, one_line

# Of a repository, that are fetched; model.fp32-*.safetensors, which large-v3 has too, are not.
HUB_FILES = ["*.json", "*.txt", "model.safetensors", "model-*.safetensors"]
MULTILINGUAL = 51_865  # tokens, by which OpenAI's code too tells such a Whisper from an English one
END_TOKEN = "<|endoftext|>"
CONTROL_TOKENS = [
    f"<|{name}|>" for name in ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
]


@click.command()
@click.option("--params", type=click.Path(path_type=Path), required=True)
@click.option("--train", required=True, help="Shards, a folder or its URL, whose texts and mels must fit.")
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Folder for the base model.")
def main(params: Path, train: str, model: Path) -> None:
    """Fetch or make the model that training starts from."""
    values = load_params(params)
    speech = pretrained(values.whisper, train, model)
    size = sum(parameter.numel() for parameter in speech.whisper.parameters())
    click.echo(f"{values.whisper.base}: {size / 1e6:.1f} M parameters in {model}")


def pretrained(settings: Whisper, train: str | Path, folder: Path) -> SpeechModel:
    """Write the base model, set to hear and write the language.

    Raises UserError where it cannot be had or is not the pinned one, does not know the language, or expects other
    features.
    """
    shards = Shards(train)
    if settings.base == "scratch":
        model = from_scratch(settings.scratch, shards)
    elif settings.base[0] in "./~":
        model = load_model(verified_folder(Path(settings.base).expanduser(), settings.revision))
    else:
        model = load_model(fetch_from_hub(settings.base, settings.revision))
    set_language(model, settings.language, settings.task)
    check_fit(model, shards, train)
    shutil.rmtree(folder, ignore_errors=True)
    save_model(model, folder)
    return model


def fetch_from_hub(name: str, revision: str | None) -> Path:
    """A model's files from the Hub at one commit, from huggingface_hub's cache where they lie there.

    Raises UserError where they cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:  # each version of huggingface_hub has another HTTP library, with errors of its own
        raise UserError(f"whisper.base: {name} at {revision} cannot be fetched: {one_line(error)}") from None
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"whisper.base: {name} at {revision} has no model.safetensors: choose a revision with one")
    return folder


def verified_folder(folder: Path, digest: str | None) -> Path:
    """The folder, where its content is what params.yaml says; raises UserError where it is not."""
    if not folder.is_dir():
        raise UserError(f"whisper.base: {folder} is not a folder")
    found = folder_digest(folder)
    if digest is None or not found.startswith(digest):
        raise UserError(f"{folder} has the digest {found}: set whisper.revision to it if this is the model you mean")
    return folder


def set_language(model: SpeechModel, language: str, task: str) -> None:
    """Set language and task where decoding, ``generate`` and ``pipeline`` find them.

    Raises UserError where the model does not know the language.
    """
    config = model.whisper.generation_config
    token, known = f"<|{language}|>", getattr(config, "lang_to_id", None)
    multilingual = model.whisper.config.vocab_size >= MULTILINGUAL and token in model.tokenizer.get_vocab()
    if known is None and multilingual:
        raise UserError(
            "whisper.base: its generation_config.json names no languages, as those of 2022 do not: put that of the "
            "openai/whisper model in its place that it came from"
        )
    if token not in (known or {}):
        raise UserError(f"whisper.language: the base model does not know {language!r}; use a multilingual Whisper")
    # Its class does not declare them. num_beams: pipeline() takes five where nothing is said.
    vars(config).update(language=language, task=task, forced_decoder_ids=None, num_beams=1)
    model.tokenizer.set_prefix_tokens(language=language, task=task, predict_timestamps=False)


def from_scratch(settings: Scratch, shards: Shards) -> SpeechModel:
    """A small Whisper with fresh weights, and a tokenizer of its own from the texts of the train shards."""
    tokenizer = train_tokenizer([entry.text for entry in shards.entries], settings.merges, settings.seconds)
    ids = tokenizer.get_vocab()
    shape: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "layers": settings.layers,
            "attention_heads": settings.heads,
            "ffn_dim": 4 * settings.d_model,
        }.items()
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=shards.n_mels,
        d_model=settings.d_model,
        init_std=settings.init_std,
        max_source_positions=settings.seconds * FRAMES_PER_SECOND // STRIDE,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=ids[END_TOKEN],
        eos_token_id=ids[END_TOKEN],
        pad_token_id=ids[END_TOKEN],
        begin_suppress_tokens=None,
        **shape,
    )
    torch.manual_seed(settings.seed)
    whisper = WhisperForConditionalGeneration(config)
    place_timestamps(whisper)
    whisper.generation_config = make_generation_config(ids)
    extractor = WhisperFeatureExtractor(feature_size=shards.n_mels, chunk_length=settings.seconds)
    return SpeechModel(whisper, tokenizer, extractor, context="full", untrained=True)


@torch.no_grad()
def place_timestamps(whisper: WhisperForConditionalGeneration) -> None:
    """Have the embedding of each timestamp, the last of the vocabulary, begin as that of the position that it names.

    Else hundreds of tokens, each of them rare, learn alone where they lie. As loud as the other fresh weights.
    """
    count = whisper.config.max_source_positions + 1
    positions = sinusoids(count, whisper.config.d_model)  # their mean square is a half
    whisper.model.decoder.embed_tokens.weight[-count:] = 2**0.5 * whisper.config.init_std * positions


def train_tokenizer(texts: list[str], merges: int, seconds: int) -> WhisperTokenizer:
    """A byte-level BPE with Whisper's special tokens, languages, tasks and the window's timestamps, in its order."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    pieces = json.loads(backend.to_str())["model"]
    tokenizer = WhisperTokenizer(vocab=pieces["vocab"], merges=[tuple(pair) for pair in pieces["merges"]])
    languages = [f"<|{code}|>" for code in LANGUAGES]  # directly after the start token, as the tokenizer computes them
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|startoftranscript|>", *languages, *CONTROL_TOKENS]})
    stamps = [f"<|{number * TIMESTAMP_SECONDS:.2f}|>" for number in range(round(seconds / TIMESTAMP_SECONDS) + 1)]
    tokenizer.add_tokens([AddedToken(stamp, special=False, normalized=False) for stamp in stamps])
    return tokenizer


def make_generation_config(ids: dict[str, int]) -> GenerationConfig:
    """What ``generate`` and ``pipeline`` want to know of a multilingual Whisper."""
    return GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=ids[END_TOKEN],
        eos_token_id=ids[END_TOKEN],
        pad_token_id=ids[END_TOKEN],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        is_multilingual=True,
        return_timestamps=False,
        max_length=WhisperConfig().max_target_positions,
    )
