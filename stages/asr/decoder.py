"""Whisper's decoder, a step at a time: texts of clips of several lengths at once, until each has ended.

transformers' decoder wants clips of one length, and copies all keys and values of a text with each token. This one
attends to each length by itself and computes all else for all texts together, so that the weights, which take longer
to read than to multiply by, are read once for all of them; it leaves out what has ended, and writes keys and values in
place.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoder

ROOM = 32  # positions of a text's keys and values at first; doubled when they are full


class Decoding:
    """The state of some texts: their keys and values, and those of the clips that they are of."""

    def __init__(self, decoder: WhisperDecoder, encoded: Sequence[torch.Tensor]):
        """decoder: in evaluation mode. encoded: the encoder's output, (n_clips, n_positions, d_model), by length."""
        self.decoder, self.length = decoder, 0
        self.layers: list[Any] = [*decoder.layers]  # a ModuleList's are but modules to its types
        self.sizes = [len(clips) for clips in encoded]
        self.heard = [[keys_and_values(layer.encoder_attn, clips) for clips in encoded] for layer in self.layers]
        self.said: list[torch.Tensor] = []  # a layer's: (2, n_texts, n_heads, room, head_dim)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The next tokens of each text, (n_texts, n_tokens) int64 -> the last one's hidden state (n_texts, d_model).

        Only the first step may have several tokens.
        """
        start, self.length = self.length, self.length + tokens.shape[1]
        hidden = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[start : self.length]
        for number, layer in enumerate(self.layers):
            attention, normed = layer.self_attn, layer.self_attn_layer_norm(hidden)
            keys, values = self.extend(number, start, keys_and_values(attention, normed))
            context = attend(queries(attention, normed), keys, values, causal=start == 0)
            hidden = hidden + attention.out_proj(context)
            attention, normed = layer.encoder_attn, layer.encoder_attn_layer_norm(hidden)
            parts = torch.split(queries(attention, normed), self.sizes)
            contexts = [attend(part, *heard) for part, heard in zip(parts, self.heard[number], strict=True)]
            hidden = hidden + attention.out_proj(torch.cat(contexts))
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        last: torch.Tensor = self.decoder.layer_norm(hidden[:, -1])
        return last

    def extend(self, number: int, start: int, new: torch.Tensor) -> torch.Tensor:
        """Put new keys and values behind those of a layer, from ``start`` on; returns all of them."""
        if number == len(self.said):
            self.said.append(new.new_empty(*new.shape[:3], max(ROOM, self.length), new.shape[4]))
        elif self.length > self.said[number].shape[3]:
            self.said[number] = pad(self.said[number], (0, 0, 0, self.said[number].shape[3]))
        self.said[number][:, :, :, start : self.length] = new
        return self.said[number][:, :, :, : self.length]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these texts alone: their places, (n,) int64, in their order."""
        self.said = [layer[:, rows] for layer in self.said]
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        spans = zip([0, *ends], ends, strict=False)
        parts = [rows[(rows >= start) & (rows < end)] - start for start, end in spans]
        for layer in self.heard:
            layer[:] = [heard[:, part] for heard, part in zip(layer, parts, strict=True) if len(part)]
        self.sizes = [len(part) for part in parts if len(part)]


def split_heads(attention: WhisperAttention, states: torch.Tensor) -> torch.Tensor:
    """(n, length, d_model) -> (n, n_heads, length, head_dim)."""
    return states.view(*states.shape[:2], attention.num_heads, attention.head_dim).transpose(1, 2).contiguous()


def queries(attention: WhisperAttention, states: torch.Tensor) -> torch.Tensor:
    """Scaled before the product, as transformers has it: rounded otherwise, a text may change."""
    return split_heads(attention, attention.q_proj(states) * attention.scaling)


def keys_and_values(attention: WhisperAttention, states: torch.Tensor) -> torch.Tensor:
    """(n, length, d_model) -> (2, n, n_heads, length, head_dim)."""
    return torch.stack([split_heads(attention, project(states)) for project in (attention.k_proj, attention.v_proj)])


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """What each query finds, heads side by side: (n, length, d_model)."""
    found = scaled_dot_product_attention(query, keys, values, is_causal=causal and query.shape[2] > 1, scale=1.0)
    return found.transpose(1, 2).flatten(2)
