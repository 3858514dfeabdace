"""The largest batch of a run, tried before its first step, so that a lack of memory shows at once and not in hours."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from stages.asr.batches import BatchItem, ClipDataset, collate
from stages.asr.decoding import on_grid
from stages.params import Train


def largest_batch(clips: ClipDataset, settings: Train, window: int) -> dict[str, torch.Tensor]:
    """What ``collate`` gives for a batch that no batch of the run exceeds, in frames or in tokens.

    A filled window has more tokens than these, in as many fewer rows.
    """
    full = settings.context == "full" or settings.full_context_share > 0
    longest = max(clips.frames())
    longest = on_grid(clips.variation.augment.longest(longest))
    n_frames = window if full else min(longest, window)
    wordiest = sorted(range(len(clips)), key=lambda place: len(clips.labels[place]), reverse=True)
    return collate([clips[BatchItem((place,), n_frames)] for place in wordiest[: settings.batch_size]])


def optimizer_moments(model: torch.nn.Module) -> list[torch.Tensor]:
    """Memory for what AdamW will hold of the weights that are trained: two moments each."""
    return [torch.empty_like(weights) for weights in model.parameters() if weights.requires_grad for _ in range(2)]


def memory_remedy(settings: Train) -> str:
    """What to change in params.yaml where training needs more memory than there is."""
    size, accumulation = settings.batch_size, settings.gradient_accumulation
    remedies = []
    if size > 1:
        remedies.append(
            f"lower train.batch_size ({size}) and raise train.gradient_accumulation ({accumulation}) by the same factor"
        )
    if not settings.gradient_checkpointing:
        remedies.append("set train.gradient_checkpointing: true")
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
