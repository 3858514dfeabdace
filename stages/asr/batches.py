"""Shards as batches for training: like lengths together, padded to the batch's own longest, labels from texts."""

import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from stages.asr.decoding import on_grid, prompt_tokens
from stages.asr.mel import pad_or_trim
from stages.asr.model import SpeechModel
from stages.asr.shards import Shards

IGNORED = -100  # label of a position without loss, as torch's cross-entropy has it
MEGA_BATCH = 50  # steps whose clips are sorted together: enough to match lengths, few enough to stay random

BatchItem = tuple[int, int]  # a clip's number, and the frames that its batch is padded to


class ClipDataset(Dataset[dict[str, np.ndarray]]):
    """Clips of a split as examples for the collator.

    [number, n_frames] -> {"input_features": (n_mels, n_frames) float32, "labels": (n_tokens,) int64}. Clips whose
    labels pass max_tokens are left out: ``dropped`` has their ids.
    """

    def __init__(self, shards: Shards, model: SpeechModel, max_tokens: int):
        self.shards = shards
        self.labels, self.numbers, self.dropped = [], [], []
        for number, entry in enumerate(shards.entries):
            tokens = label_tokens(model, entry.text)
            if len(tokens) > max_tokens:
                self.dropped.append(entry.id)
            else:
                self.numbers.append(number)
                self.labels.append(tokens)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: BatchItem) -> dict[str, np.ndarray]:
        place, n_frames = item
        mel = pad_or_trim(self.shards.mel(self.numbers[place]), n_frames)
        return {"input_features": mel, "labels": self.labels[place]}

    def frames(self) -> list[int]:
        """Frames of each clip on the decoder's grid, so that training sees the contexts that decoding will use."""
        return [on_grid(self.shards.entries[number].n_frames) for number in self.numbers]


def label_tokens(model: SpeechModel, text: str) -> np.ndarray:
    """What the decoder is to say: language, task, no timestamps, the text, the end: (n_tokens,) int64.

    The model shifts them right and puts the one start token before them, so the start token is not among them.
    """
    _, *rest = prompt_tokens(model)
    tokens = model.tokenizer(text, add_special_tokens=False).input_ids
    return np.array([*rest, *tokens, model.whisper.generation_config.eos_token_id])


def collate(items: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """{"input_features": (batch, n_mels, n_frames) float32, "labels": (batch, longest) int64 filled with IGNORED}."""
    labels = [torch.from_numpy(item["labels"]) for item in items]
    return {
        "input_features": torch.from_numpy(np.stack([item["input_features"] for item in items])),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


class LengthBucketSampler(Sampler[list[BatchItem]]):
    """Batches of clips of like length, in an order that seed and epoch alone decide.

    Each ``accumulation`` batches that follow one another are one optimizer step, and its clips and their padding depend
    on the product of batch_size and accumulation alone. Of the steps a share, drawn at random, is padded to the full
    window, so that the model goes on to understand it: transformers' own pipeline knows no other. Each epoch is another
    order; ``set_epoch`` says which.
    """

    def __init__(
        self, frames: list[int], batch_size: int, window: int, full_share: float, seed: int, accumulation: int = 1
    ):
        self.lengths, self.batch_size, self.window = frames, batch_size, window
        self.full_share, self.seed, self.epoch = full_share, seed, 0
        self.accumulation = accumulation
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        steps, rest = divmod(len(self.lengths), self.batch_size * self.accumulation)
        return steps * self.accumulation + min(rest, self.accumulation)

    def __iter__(self) -> Iterator[list[BatchItem]]:
        order = random.Random(f"{self.seed} {self.epoch}")
        numbers = order.sample(range(len(self.lengths)), len(self.lengths))
        size = self.batch_size * self.accumulation
        steps = []
        for start in range(0, len(numbers), MEGA_BATCH * size):
            mega_batch = sorted(numbers[start : start + MEGA_BATCH * size], key=self.lengths.__getitem__)
            steps += [mega_batch[at : at + size] for at in range(0, len(mega_batch), size)]
        order.shuffle(steps)
        full = [order.random() < self.full_share for _ in steps]
        whole_first = sorted(zip(steps, full, strict=True), key=lambda entry: len(entry[0]) < self.accumulation)
        for step, at_full_window in whole_first:  # one of too few clips for all its batches is the epoch's last
            longest = max(self.lengths[number] for number in step)
            frames = self.window if at_full_window else min(longest, self.window)
            batches = min(len(step), self.accumulation)
            for start, end in pairwise(len(step) * at // batches for at in range(batches + 1)):
                yield [(number, frames) for number in step[start:end]]
