"""The largest batch of a run, tried before its first step, so that a lack of memory shows at once and not in hours."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from stages.asr.batches import Batching, BatchItem, ClipDataset, collate
from stages.asr.decoding import GRID
from stages.asr.mel import FRAMES_PER_SECOND
from stages.params import Train
from stages.training.muon import hidden_matrices
from stages.training.ranks import Ranks


def make_batching(settings: Train, window: int, ranks: Ranks | None = None) -> Batching:
    """The settings' batches for a model of a window of so many frames, of which a rank has its part."""
    ranks = ranks or Ranks()
    return Batching(
        settings.batch_size,
        window,
        1.0 if settings.context == "full" else settings.full_context_share,
        settings.filled_window_share,
        settings.gradient_accumulation,
        ranks.count,
        ranks.rank,
        int(settings.batch_seconds * FRAMES_PER_SECOND) if settings.batch_seconds else None,
    )


def largest_batches(clips: ClipDataset, settings: Train, window: int) -> list[dict[str, torch.Tensor]]:
    """What ``collate`` gives for batches that take as much memory as any of the run, in frames and in tokens.

    That of the longest windows; that of the longest clips too, where full windows alone are checkpointed; and with
    batch_seconds that of the most clips. A filled window has more tokens than these, in as many fewer rows.
    """
    batching = make_batching(settings, window)
    longest_clip = min(max(clips.most_frames()), window)
    lengths = {window if batching.full_share else longest_clip}
    if settings.gradient_checkpointing == "full_windows" and batching.full_share < 1 and window > GRID:
        lengths.add(min(longest_clip, window - GRID))
    if batching.most_frames and batching.full_share < 1:
        shorter = max(batching.most_frames // settings.batch_size // GRID, 1) * GRID
        lengths.add(min(shorter, longest_clip))
    wordiest = sorted(range(len(clips)), key=lambda place: len(clips.labels[place]), reverse=True)
    return [
        collate([clips[BatchItem((place,), n_frames)] for place in wordiest[: batching.limit(n_frames)]])
        for n_frames in sorted(lengths)
    ]


def optimizer_moments(model: nn.Module, optimizer: str) -> list[torch.Tensor]:
    """Memory for what the optimizer will hold of the weights that are trained: two moments each.

    Of Muon's matrices one. In 8 bits a byte a value, but for embeddings, whose moments transformers leaves in float32.
    """
    in_bytes = optimizer == "adamw_8bit"
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    single = {id(weights) for weights in hidden_matrices(model)} if optimizer == "muon" else set()
    return [
        torch.empty_like(weights, dtype=torch.uint8 if in_bytes and id(weights) not in embeddings else None)
        for weights in model.parameters()
        if weights.requires_grad
        for _ in range(1 if id(weights) in single else 2)
    ]


def memory_remedy(settings: Train) -> str:
    """What to change in params.yaml where training needs more memory than there is."""
    size, accumulation = settings.batch_size, settings.gradient_accumulation
    remedies = []
    if settings.batch_seconds:
        remedies.append(f"lower train.batch_seconds ({settings.batch_seconds:g})")
    elif size > 1:
        remedies.append(
            f"lower train.batch_size ({size}) and raise train.gradient_accumulation ({accumulation}) by the same factor"
        )
    if settings.gradient_checkpointing != "all":
        remedies.append("set train.gradient_checkpointing: all")
    if settings.context == "clip" and settings.full_context_share > 0:
        remedies.append(f"set train.full_context_share: 0 (now {settings.full_context_share:g})")
    return ", or ".join(remedies or ["train a smaller model, whisper.base"])


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Give every random generator that training draws from its state back at the end."""
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    ours, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = accelerator.get_rng_state() if accelerator else None
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)
        if accelerator:
            accelerator.set_rng_state(devices)
