"""whisper.cpp's format, as its ``whisper_model_load`` reads it."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from stages.asr.mel import mel_filters
from stages.asr.model import SpeechModel
from stages.runtime.files import written_aside
from tools.convert.vocabulary import TEXT_TOKENS, in_whisper_shape

FILE = "ggml-model.bin"
MAGIC = 0x67676D6C  # "ggml"
FLOAT32, FLOAT16 = 0, 1
OUTER = {  # a tensor's name at whisper.cpp, which is openai/whisper's, by its name here
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "decoder.embed_tokens": "decoder.token_embedding",
    "decoder.layer_norm": "decoder.ln",
    ".layers.": ".blocks.",
    ".self_attn_layer_norm.": ".attn_ln.",
    ".encoder_attn_layer_norm.": ".cross_attn_ln.",
    ".final_layer_norm.": ".mlp_ln.",
    ".self_attn.": ".attn.",
    ".encoder_attn.": ".cross_attn.",
    ".q_proj.": ".query.",
    ".k_proj.": ".key.",
    ".v_proj.": ".value.",
    ".out_proj.": ".out.",
    ".fc1.": ".mlp.0.",
    ".fc2.": ".mlp.2.",
}


def write_ggml(model: SpeechModel, folder: Path, precision: str = "float16") -> None:
    """Write ``ggml-model.bin`` into a folder for whisper.cpp; raises UserError where the vocabulary does not fit.

    Matrices are float16, the only kind that its convolutions take, all else is float32. Its own ``quantize`` makes
    smaller ones of it.
    """
    wide = in_whisper_shape(model)
    assert precision == "float16"
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / FILE) as part, part.open("wb") as file:
        write_header(file, wide)
        for name, weights in named_tensors(wide):
            write_tensor(file, name, weights)


def write_header(file: BinaryIO, model: SpeechModel) -> None:
    """Sizes, mel filters and the bytes of each text token."""
    config = model.whisper.config
    sizes = (
        *(config.vocab_size, config.max_source_positions, config.d_model, config.encoder_attention_heads),
        *(config.encoder_layers, config.max_target_positions, config.d_model, config.decoder_attention_heads),
        *(config.decoder_layers, config.num_mel_bins, FLOAT16),
    )
    file.write(struct.pack(f"<{1 + len(sizes)}i", MAGIC, *sizes))
    filters = mel_filters(config.num_mel_bins).astype("<f4")
    file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
    pieces = text_pieces(model)
    file.write(struct.pack("<i", len(pieces)))
    for piece in pieces:
        file.write(struct.pack("<i", len(piece)) + piece)


def text_pieces(model: SpeechModel) -> list[bytes]:
    """The bytes of each text token, in the tokens' order; those of control tokens whisper.cpp knows itself."""
    vocabulary = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    values = byte_values()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    return [bytes(values[sign] for sign in piece) for piece in pieces if vocabulary[piece] < TEXT_TOKENS]


def byte_values() -> dict[str, int]:
    """The byte that each sign of a byte-level BPE stands for.

    Printable ones of Latin-1 stand for themselves, the others for signs from 256 on, in their order: Radford et al.,
    "Language Models are Unsupervised Multitask Learners" (2019), as published in openai/gpt-2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + at): value for at, value in enumerate(others)}


def named_tensors(model: SpeechModel) -> Iterator[tuple[str, np.ndarray]]:
    """The weights by their names at whisper.cpp: float32."""
    for name, weights in model.whisper.model.state_dict().items():
        for ours, theirs in OUTER.items():
            name = name.replace(ours, theirs)
        values = weights.float().numpy()
        yield name, values[:, None] if name in ("encoder.conv1.bias", "encoder.conv2.bias") else values


def write_tensor(file: BinaryIO, name: str, weights: np.ndarray) -> None:
    """One tensor with its header; its sizes stand the other way round, the last first."""
    kept = weights.ndim < 2 or name.endswith(("positional_embedding", ".bias"))
    kind = FLOAT32 if kept else FLOAT16
    file.write(struct.pack("<3i", weights.ndim, len(name), kind))
    file.write(struct.pack(f"<{weights.ndim}i", *reversed(weights.shape)) + name.encode())
    file.write(weights.astype("<f2" if kind == FLOAT16 else "<f4").tobytes())


def whisper_cpp_recogniser(folder: Path, language: str, task: str) -> Callable[[np.ndarray], str]:
    """whisper.cpp with a converted model: a function from (n_samples,) float32 at 16 kHz, 30 s at most, to text.

    Without its flash attention, which also attends to the padding of the keys.
    """
    from pywhispercpp.model import Model

    model = Model(
        str(folder / FILE),
        redirect_whispercpp_logs_to=None,
        n_threads=torch.get_num_threads(),
        context_params={"flash_attn": False},
        language=language,
        translate=task == "translate",
        no_timestamps=True,
        single_segment=True,
        no_context=True,
        temperature=0.0,
        temperature_inc=0.0,
        print_progress=False,
        print_realtime=False,
    )

    def recognise(samples: np.ndarray) -> str:
        segments = model.transcribe(samples.astype(np.float32))
        return " ".join(" ".join(segment.text for segment in segments).split())

    return recognise
