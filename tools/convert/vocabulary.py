"""A small vocabulary in the shape of Whisper's own, by which other engines know what a token is.

CTranslate2 and whisper.cpp take a model from scratch for an English one, and whisper.cpp counts the control tokens from
fixed numbers.
"""

import copy
import json
from typing import Any

import torch
from transformers import WhisperTokenizer

from stages.asr.model import SpeechModel
from stages.runtime.errors import UserError

TEXT_TOKENS = 50_257  # of a multilingual Whisper: those before <|endoftext|>
FEWEST_LANGUAGES = 99  # large-v3 has one more
WINDOW_STAMPS = 1501  # timestamps of 30 s
EMPTY = ""  # the last of them: by it CTranslate2 knows a model of several languages
# faster-whisper forbids the first token of each of these; in letters that would be the space.
FORBIDDEN = [("Ġ", "-"), ("Ġ", "'"), ("Ġ", "â")]
UNKNOWN = (
    "the model's vocabulary is not that of a multilingual Whisper of 30 s, nor one that `scratch` makes: train from one"
    " of these (whisper.base)"
)
TOKEN_KEYS = (  # of a config or a generation config, which hold tokens' numbers
    *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens"),
    *("begin_suppress_tokens", "no_timestamps_token_id", "prev_sot_token_id", "lang_to_id", "task_to_id"),
)


def text_tokens(model: SpeechModel) -> int:
    """Tokens of text in a model's vocabulary, which are its first."""
    return int(model.whisper.generation_config.eos_token_id)


def has_whisper_shape(model: SpeechModel) -> bool:
    """Whether every token is where other engines look for it."""
    config = vars(model.whisper.generation_config)
    languages = sorted((config.get("lang_to_id") or {}).values())
    first, n = TEXT_TOKENS + 2, len(languages)
    return (
        text_tokens(model) == TEXT_TOKENS
        and n >= FEWEST_LANGUAGES
        and languages == list(range(first, first + n))
        and config.get("task_to_id") == {"translate": first + n, "transcribe": first + n + 1}
        and config.get("no_timestamps_token_id") == first + n + 5
        and model.whisper.config.vocab_size == first + n + 6 + WINDOW_STAMPS
    )


def in_whisper_shape(model: SpeechModel) -> SpeechModel:
    """The model, or where its vocabulary is smaller a copy with tokens between text and control that nobody says.

    Says the same: each such token is as likely as the languages' are in the mean, so never likelier than all others.
    Raises UserError where the vocabulary cannot be brought into Whisper's shape.
    """
    if has_whisper_shape(model):
        return model
    n_text = text_tokens(model)
    added = [token for _, token in sorted(model.tokenizer.added_tokens_decoder.items())]
    if not n_text < TEXT_TOKENS - len(FORBIDDEN) - 1 or str(added[0]) != "<|endoftext|>":
        raise UserError(UNKNOWN)
    shift = TEXT_TOKENS - n_text
    wide = SpeechModel(
        widen_weights(model, n_text, shift), widen_tokenizer(model, added), model.extractor, model.context, model.margin
    )
    if len(wide.tokenizer) != wide.whisper.config.vocab_size or not has_whisper_shape(wide):
        raise UserError(UNKNOWN)
    return wide


def widen_tokenizer(model: SpeechModel, added: list[Any]) -> WhisperTokenizer:
    """The tokenizer with unused pieces up to Whisper's number; added: the tokens after the text's."""
    pieces = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary, merges = dict(pieces["vocab"]), [tuple(pair) for pair in pieces["merges"]]
    new = [pair for pair in FORBIDDEN if "".join(pair) not in vocabulary]
    names = ["".join(pair) for pair in new]
    names += [f"<|unused{number}|>" for number in range(TEXT_TOKENS - 1 - len(vocabulary) - len(names))]
    names += [EMPTY]
    vocabulary |= zip(names, range(len(vocabulary), TEXT_TOKENS), strict=True)
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges + new)
    tokenizer.add_tokens(added)
    config = vars(model.whisper.generation_config)
    tokenizer.set_prefix_tokens(language=config["language"], task=config["task"], predict_timestamps=False)
    return tokenizer


@torch.no_grad()
def widen_weights(model: SpeechModel, n_text: int, shift: int) -> Any:
    """A copy of the network whose tokens from n_text on are ``shift`` further on, with their numbers in its configs."""
    whisper = copy.deepcopy(model.whisper)
    config, generation = whisper.config, vars(whisper.generation_config)

    def moved(value: Any) -> Any:
        """A token's number, or several, as they are now."""
        if isinstance(value, dict):
            return {key: moved(token) for key, token in value.items()}
        if isinstance(value, list):
            return [moved(token) for token in value]
        return value + shift if isinstance(value, int) and value >= n_text else value

    rows = model.whisper.model.decoder.embed_tokens.weight
    unused = rows[list(generation["lang_to_id"].values())].mean(0)
    whisper.resize_token_embeddings(len(rows) + shift, mean_resizing=False)
    wide = whisper.model.decoder.embed_tokens.weight
    wide.copy_(torch.cat([rows[:n_text], unused.expand(shift, -1), rows[n_text:]]))
    for key in TOKEN_KEYS:
        if key in generation:
            generation[key] = moved(generation[key])
        if getattr(config, key, None) is not None:
            setattr(config, key, moved(getattr(config, key)))
    return whisper
