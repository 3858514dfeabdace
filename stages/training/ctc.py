"""A CTC loss on the encoder, which teaches it where sounds lie long before the decoder's attention finds them.

Kim, Hori and Watanabe, "Joint CTC-Attention based End-to-End Speech Recognition using Multi-task Learning" (2017). The
head serves training alone: checkpoints hold it, and the finished model does not.
"""

import torch
from torch import nn

from stages.asr.batches import IGNORED, ClipDataset
from stages.asr.decoding import on_grid
from stages.asr.encoder import STRIDE
from stages.asr.model import SpeechModel

HEAD = "ctc_head"  # of the module, and so of its weights' names
POOLED = 2  # positions, 40 ms: with half as many blanks between the letters, it is learned in a third of the steps


def add_head(model: SpeechModel, seed: int) -> None:
    """Give the model a projection from the encoder's states to the text's tokens and a blank."""
    config = model.whisper.config
    # Whisper numbers the end of text after all pieces of text, and before all other special tokens.
    head = nn.Linear(config.d_model, blank(model) + 1, device="meta").to_empty(device="cpu")  # draws nothing
    draw = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=config.d_model**-0.5, generator=draw)
    nn.init.zeros_(head.bias)
    setattr(model.whisper, HEAD, head.to(model.whisper.device))


def blank(model: SpeechModel) -> int:
    """The token that stands for no output: the end of text, which no text holds."""
    end = model.whisper.generation_config.eos_token_id
    assert isinstance(end, int)
    return end


def count_too_long(model: SpeechModel, clips: ClipDataset) -> int:
    """Clips whose texts have more tokens than the encoder has pooled positions for: they teach it nothing."""
    frames = (clips.shards.entries[number].n_frames for number in clips.numbers)
    positions = (-(-on_grid(n_frames) // (STRIDE * POOLED)) for n_frames in frames)
    return sum((tokens < blank(model)).sum() > room for tokens, room in zip(clips.labels, positions, strict=True))


def ctc_loss(model: SpeechModel, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over a batch, in nats, of the texts' CTC losses: () float32.

    hidden: (batch, n_positions, d_model), the encoder's states; labels: (batch, longest) int64, of which the pieces of
    text count. A text too long for its positions counts 0. Computed on the processor, for CUDA's gradient of it is left
    to chance, and in float64, for it adds up thousands of paths.
    """
    head, end = getattr(model.whisper, HEAD), blank(model)
    pooled = nn.functional.avg_pool1d(hidden.float().transpose(1, 2), POOLED, ceil_mode=True).transpose(1, 2)
    log_probabilities = head(pooled).cpu().double().log_softmax(-1).transpose(0, 1)
    labels = labels.cpu()
    texts = (labels != IGNORED) & (labels < end)
    positions = torch.full((len(labels),), len(log_probabilities))
    loss = nn.functional.ctc_loss(
        log_probabilities,
        labels[texts],
        positions,
        texts.sum(1),
        blank=end,
        reduction="sum",
        zero_infinity=True,
    )
    return loss.float().to(hidden.device)


def remove_head(model: SpeechModel) -> None:
    """Leave a plain Whisper."""
    if hasattr(model.whisper, HEAD):
        delattr(model.whisper, HEAD)
