"""ONNX files as transformers.js looks for them: an encoder, and a decoder that keeps keys and values between tokens."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

from stages.asr.mel import log_mel, pad_or_trim
from stages.asr.model import SpeechModel, save_model
from stages.runtime.errors import UserError

OPSET = 17  # the least with layer normalisation as one operator
ENCODER, DECODER = "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"
CACHES = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")  # of each layer
BRANCH = "use_cache_branch"
MAX_BYTES = 2_000_000_000


class Encoder(nn.Module):
    """The encoder as a function of the features alone: the exporter hands on a method's defaults as inputs too."""

    def __init__(self, whisper: WhisperForConditionalGeneration):
        super().__init__()
        self.encoder = whisper.model.encoder

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """(batch, n_mels, n_frames) -> (batch, positions, d_model)."""
        states: torch.Tensor = self.encoder(mels).last_hidden_state
        return states


class CachedDecoder(nn.Module):
    """Whisper's decoder as a function of tokens, the encoder's states and the caches of each layer, as CACHES lists.

    first: computes the caches of the encoder's states and passes by those that it is given, which are empty; else
    computes one more token.
    """

    def __init__(self, whisper: WhisperForConditionalGeneration, first: bool):
        super().__init__()
        self.decoder, self.proj_out, self.first = whisper.model.decoder, whisper.proj_out, first

    def forward(self, tokens: torch.Tensor, encoded: torch.Tensor, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, n) int64, (batch, positions, d_model), caches (batch, heads, n, d) -> logits, caches."""
        start = 0 if self.first else caches[0].shape[2]
        hidden = self.decoder.embed_tokens(tokens)
        hidden = hidden + self.decoder.embed_positions.weight[start : start + tokens.shape[1]]
        new: list[torch.Tensor] = []
        for number, layer in enumerate(self.decoder.layers):
            own_key, own_value, key, value = caches[4 * number : 4 * number + 4]
            normal, attention = layer.self_attn_layer_norm(hidden), layer.self_attn
            added = split_heads(attention, attention.k_proj(normal)), split_heads(attention, attention.v_proj(normal))
            before = (own_key[:, :, :0], own_value[:, :, :0]) if self.first else (own_key, own_value)
            own_key, own_value = (torch.cat(pair, 2) for pair in zip(before, added, strict=True))
            hidden = hidden + attend(attention, normal, own_key, own_value, causal=self.first)
            normal, attention = layer.encoder_attn_layer_norm(hidden), layer.encoder_attn
            if self.first:
                key, value = (split_heads(attention, part(encoded)) for part in (attention.k_proj, attention.v_proj))
            hidden = hidden + attend(attention, normal, key, value, causal=False)
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
            new += [own_key, own_value, key, value]
        return self.proj_out(self.decoder.layer_norm(hidden)), *new


def split_heads(attention: Any, states: torch.Tensor) -> torch.Tensor:
    """(batch, n, d_model) -> (batch, heads, n, d)."""
    return states.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def attend(attention: Any, states: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """What an attention adds to (batch, n, d_model) of states."""
    query = split_heads(attention, attention.q_proj(states))
    found = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return attention.out_proj(found.transpose(1, 2).flatten(2))


def write_onnx(model: SpeechModel, folder: Path, precision: str = "float32") -> None:
    """Write a folder for transformers.js: config, tokenizer and features as they are, and the two graphs.

    Raises UserError where the decoder is larger than an ONNX file, a message of protobuf, can be.
    """
    import onnx

    assert precision == "float32"
    n_bytes = 4 * sum(weights.numel() for weights in model.whisper.model.decoder.parameters())
    if n_bytes > MAX_BYTES:
        raise UserError(
            f"the decoder has {n_bytes / 1e9:.1f} GB, and an ONNX file {MAX_BYTES / 1e9:.0f} GB at most: convert this"
            " model to ctranslate2 or ggml"
        )
    save_model(model, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    (folder / "onnx").mkdir()
    whisper = model.whisper
    config = whisper.config
    mels = torch.zeros(1, config.num_mel_bins, model.window)
    export(Encoder(whisper), (mels,), folder / ENCODER, ["input_features"], ["last_hidden_state"], {})
    names = [f"{number}.{cache}" for number in range(config.decoder_layers) for cache in CACHES]
    inputs = ["input_ids", "encoder_hidden_states", *(f"past_key_values.{name}" for name in names)]
    outputs = ["logits", *(f"present.{name}" for name in names)]
    lengths = {name: {2: f"{name}_length"} for name in [*inputs[2:], *outputs[1:]]}
    dynamic = {"input_ids": {1: "n"}, "encoder_hidden_states": {1: "positions"}, "logits": {1: "n"}} | lengths
    encoded = torch.zeros(1, config.max_source_positions, config.d_model)
    size = (1, config.decoder_attention_heads, 5, config.d_model // config.decoder_attention_heads)
    caches = [torch.zeros(size) for _ in names]
    with tempfile.TemporaryDirectory() as aside:
        for name, n in (("first", 4), ("later", 1)):
            arguments = (torch.zeros(1, n, dtype=torch.long), encoded, *caches)
            decoder = CachedDecoder(whisper, first=name == "first")
            export(decoder, arguments, Path(aside, name), inputs, outputs, dynamic)
        graph = merge(onnx.load(Path(aside, "first")), onnx.load(Path(aside, "later")), inputs, outputs)
    onnx.save(graph, folder / DECODER)


def export(
    network: nn.Module,
    arguments: tuple[torch.Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    dynamic: dict[str, dict[int, str]],
) -> None:
    """Trace a network to a file; weights keep their names, by which two files can share them."""
    dynamic = {name: {0: "batch"} | dynamic.get(name, {}) for name in [*inputs, *outputs]}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the exporter, of its own future and of what is constant in a trace
        torch.onnx.export(
            network,
            arguments,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=OPSET,
            do_constant_folding=False,
            dynamo=False,
        )


def merge(first: Any, later: Any, inputs: list[str], outputs: list[str]) -> Any:
    """One graph of both, which share their weights: ``use_cache_branch`` chooses."""
    from onnx import TensorProto, helper

    weights = {weight.name: weight for graph in (first, later) for weight in graph.graph.initializer}
    branches = {
        branch: helper.make_graph(each.graph.node, branch, [], each.graph.output)
        for branch, each in (("then_branch", later), ("else_branch", first))
    }
    given = {value.name: value for each in (first, later) for value in each.graph.input}
    flag = helper.make_tensor_value_info(BRANCH, TensorProto.BOOL, [1])
    node = helper.make_node("If", [BRANCH], outputs, **branches)
    wanted = [*(given[name] for name in inputs), flag]
    graph = helper.make_graph([node], "decoder", wanted, first.graph.output, [*weights.values()])
    return helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)


def onnx_recogniser(folder: Path, language: str, task: str) -> Callable[[np.ndarray], str]:
    """ONNX Runtime with a converted model: a function from (n_samples,) float32 at 16 kHz, 30 s at most, to text.

    The graphs are called as transformers.js calls them; language and task stand in the folder.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    encoder, decoder = (InferenceSession(folder / file, options) for file in (ENCODER, DECODER))
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    (mels,) = encoder.get_inputs()
    start, most = tokenizer.prefix_tokens, WhisperConfig.from_pretrained(folder).max_target_positions // 2
    empty = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in decoder.get_inputs()
        if value.name.startswith("past_key_values")
    }

    def recognise(samples: np.ndarray) -> str:
        window = pad_or_trim(log_mel(samples, mels.shape[1]).astype(np.float32), mels.shape[2])
        (encoded,) = encoder.run(None, {mels.name: window[None]})
        text, tokens, caches = list[int](), start, empty
        while len(text) < most:
            given = {"input_ids": np.array([tokens]), "encoder_hidden_states": encoded, BRANCH: np.array([bool(text)])}
            logits, *new = decoder.run(None, given | caches)
            logits[:, :, generation.suppress_tokens or []] = -np.inf
            logits[:, :, (not text and generation.begin_suppress_tokens) or []] = -np.inf
            caches = dict(zip(empty, new, strict=True))
            tokens = [int(logits[0, -1].argmax())]
            if tokens[0] == generation.eos_token_id:
                break
            text += tokens
        return " ".join(tokenizer.decode(text, skip_special_tokens=True).split())

    return recognise
