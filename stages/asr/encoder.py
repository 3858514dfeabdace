"""Whisper's encoder on windows shorter than 30 s.

transformers' encoder refuses any input but the full window. This one takes the first positions for as many frames as
it is given, and on the full window computes exactly the same. Shorter contexts want training for them: a pretrained
Whisper repeats itself on them until it has seen some (futo-org/whisper-acft).
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from stages.asr.mel import FRAMES_PER_SECOND

STRIDE = 2  # frames a position: what the second convolution leaves out
TIMESTAMP_SECONDS = STRIDE / FRAMES_PER_SECOND  # Whisper's timestamps name positions


class AnyLengthEncoder(WhisperEncoder):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__ is untyped
    """WhisperEncoder for (batch, n_mels, n_frames) with n_frames even and at most the full window's."""

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: None = None,
        check: Callable[[], None] = lambda: None,
        **kwargs: object,
    ) -> BaseModelOutput:
        """(batch, n_mels, n_frames) float -> last_hidden_state (batch, n_frames / 2, d_model); nothing is masked.

        check: called before each layer.
        """
        hidden = nn.functional.gelu(self.conv1(input_features))
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        hidden = nn.functional.dropout(hidden, p=self.dropout, training=self.training)
        for layer in self.layers:
            check()
            if self.training and self.layerdrop > 0 and torch.rand([]) < self.layerdrop:
                continue  # LayerDrop, Fan et al. 2019
            hidden = layer(hidden, None)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden))


def allow_any_length(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Give a loaded model the encoder above, in place; its weights and what it saves stay the same."""
    model.model.encoder.__class__ = AnyLengthEncoder
    return model


def window_frames(model: WhisperForConditionalGeneration) -> int:
    """Frames of the model's full window: 3000 for OpenAI's."""
    return model.config.max_source_positions * STRIDE
