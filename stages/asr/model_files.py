"""What the files of a model's folder say, looked at before a library makes anything of them.

A folder may come from anyone: a pin, the Hub, a mirror. What its config asks for is bounded by the weights that lie
beside it, so that it cannot ask for more memory or time than its size.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import WhisperConfig

MAX_JSON_BYTES = 32_000_000  # the largest of Whisper's own, its tokenizer's, has 4 MB
BYTES_A_WEIGHT = 2  # at least: float16 and bfloat16

Signed = Annotated[int, Field(ge=-1, lt=1_000_000)]
Token = Annotated[int, Field(ge=0, lt=1_000_000)]
Layers = Annotated[int, Field(ge=1, le=64)]
Width = Annotated[int, Field(ge=1, le=32_768)]


class Entries(BaseModel):
    """Entries of a JSON file; those that we do not know are the libraries' own."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @classmethod
    def read(cls, path: Path, defaults: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """A file's entries, checked; raises ValueError."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"its {path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"its {path.name} is no JSON object")
        try:
            return cls.model_validate({**defaults, **values})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "a value"
            raise ValueError(f"its {path.name} has a wrong {where}: {first['msg']}") from None


class Note(Entries):
    """What we add to config.json. margin: frames."""

    context: Literal["clip", "full"] = "full"
    margin: Annotated[int, Field(ge=0, le=3000)] = 0
    untrained: bool = False


class Shape(Entries):
    """A Whisper's config.json, as far as it decides on sizes."""

    model_type: Literal["whisper"]
    d_model: Annotated[int, Field(ge=1, le=8192)]
    encoder_layers: Layers
    decoder_layers: Layers
    encoder_attention_heads: Layers
    decoder_attention_heads: Layers
    encoder_ffn_dim: Width
    decoder_ffn_dim: Width
    vocab_size: Annotated[int, Field(ge=1, le=1_000_000)]
    num_mel_bins: Annotated[int, Field(ge=1, le=512)]
    max_source_positions: Width
    max_target_positions: Width
    decoder_start_token_id: Token
    quantization_config: None = None
    viska: Note | None = None

    @model_validator(mode="after")
    def check_heads(self) -> "Shape":
        for heads in (self.encoder_attention_heads, self.decoder_attention_heads):
            if self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is no multiple of {heads} attention heads")
        return self

    @property
    def n_weights(self) -> int:
        """Of the layers and embeddings alone, so a little fewer than there are."""
        encoder = self.encoder_layers * (4 * self.d_model**2 + 2 * self.d_model * self.encoder_ffn_dim)
        decoder = self.decoder_layers * (8 * self.d_model**2 + 2 * self.d_model * self.decoder_ffn_dim)
        return encoder + decoder + self.d_model * (self.vocab_size + self.max_source_positions)


class Features(Entries):
    """A Whisper's preprocessor_config.json, as far as it decides on sizes: one whose features are not ours is refused.

    chunk_length: seconds.
    """

    feature_size: Annotated[int, Field(ge=1, le=512)]
    sampling_rate: Literal[16_000]
    hop_length: Literal[160]
    n_fft: Literal[400]
    chunk_length: Annotated[int, Field(ge=1, le=3600)]


class Processor(Entries):
    """A Whisper's processor_config.json, in which transformers 5 keeps, and first looks for, its features."""

    feature_extractor: Features | None = None


class Generation(Entries):
    """A Whisper's generation_config.json, as far as decoding and training read it."""

    eos_token_id: Token
    max_length: Annotated[int, Field(ge=1, le=32_768)] | None = None
    no_timestamps_token_id: Token | None = None
    suppress_tokens: list[Signed] | None = None  # -1 is none of them
    begin_suppress_tokens: list[Signed] | None = None
    lang_to_id: dict[str, Token] | None = None
    task_to_id: dict[str, Token] | None = None
    language: str | None = None
    task: str | None = None


def check_model_files(folder: Path) -> Note:
    """What we noted in a model's config.json; raises ValueError where a file is not what a Whisper's is."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.txt")]):
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"its {path.name} is larger than {MAX_JSON_BYTES // 1_000_000} MB")
    shape = Shape.read(folder / "config.json", WhisperConfig().to_dict() | {"model_type": None})
    n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if shape.n_weights * BYTES_A_WEIGHT > n_bytes:
        raise ValueError(
            f"its config.json describes {shape.n_weights:,} weights or more, and its weights have {n_bytes:,} bytes"
        )
    if (folder / "generation_config.json").exists():  # else transformers takes what config.json says
        Generation.read(folder / "generation_config.json")
    processor = folder / "processor_config.json"
    if not (processor.exists() and Processor.read(processor).feature_extractor):
        Features.read(folder / "preprocessor_config.json")
    return shape.viska or Note()
