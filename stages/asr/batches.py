"""Shards as batches for training: like lengths together, padded to the batch's own longest, labels from texts."""

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from stages.asr.augmentation import AugmentOptions, Change
from stages.asr.clips import UNKNOWN_SPEAKER
from stages.asr.decoding import on_grid, prompt_tokens
from stages.asr.labels import LabelStyle, LabelWriter
from stages.asr.mel import LOG_MEL_RANGE, mel_floor, pad_or_trim
from stages.asr.model import START_TOKEN, SpeechModel
from stages.asr.shards import Shards
from stages.asr.timestamps import speech_bounds, timestamp

IGNORED = -100  # label of a position without loss, as torch's cross-entropy has it
PREVIOUS_TOKEN = "<|startofprev|>"  # before a text that came earlier
MEGA_BATCH = 50  # steps whose clips are sorted together: enough to match lengths, few enough to stay random


class BatchItem(NamedTuple):
    """The clips of one window by number, the frames that it is padded to, and the epoch, which decides on changes."""

    places: tuple[int, ...]
    n_frames: int
    epoch: int | None = None  # None: the clips as they are


@dataclass(frozen=True)
class Variation:
    """What differs from epoch to epoch: how far clips are changed, and what labels have beside their text, as shares.

    stamped_share: timestamps; prompted_share: a text before theirs, as the decoder has it in the middle of a recording.
    seed: decides the draws, with the epoch and the clip.
    """

    augment: AugmentOptions = field(default_factory=AugmentOptions)
    stamped_share: float = 0.0
    prompted_share: float = 0.0
    seed: int = 0


class ClipDataset(Dataset[dict[str, np.ndarray]]):
    """Clips of a split as examples for the collator.

    [BatchItem] -> {"input_features": (n_mels, n_frames) float32, "decoder_input_ids", "labels": (n_tokens,) int64}.
    Several clips follow one another with pauses, and so do their texts. Labels are in the given style. Clips whose
    labels pass max_tokens or say nothing are left out: ``dropped`` has why, by id.
    """

    def __init__(
        self,
        shards: Shards,
        model: SpeechModel,
        max_tokens: int,
        style: LabelStyle | None = None,
        variation: Variation | None = None,
    ):
        self.shards, self.max_tokens, self.variation = shards, max_tokens, variation or Variation()
        self.window, self.margin = model.window, model.margin
        self.longest_prompt = model.whisper.config.max_target_positions // 2  # as OpenAI's decoding cuts it
        self.start, self.previous = map(model.tokenizer.convert_tokens_to_ids, (START_TOKEN, PREVIOUS_TOKEN))
        self.stamps = [timestamp(model, frame) for frame in range(model.window + 1)]
        self.labels, self.following = list[np.ndarray](), list[np.ndarray]()
        self.numbers = list[int]()
        self.dropped: dict[str, str] = {}
        self.places_of: dict[str, list[int]] = defaultdict(list)
        writer = LabelWriter(model, style or LabelStyle())
        for number, entry in enumerate(shards.entries):
            text = writer.write(entry.text)
            tokens = label_tokens(model, text)
            if not text or len(tokens) > max_tokens:
                self.dropped[entry.id] = "label too long" if text else "label empty"
                continue
            self.places_of[entry.speaker].append(len(self.numbers))
            self.numbers.append(number)
            self.labels.append(tokens)
            following = writer.write(entry.text, before=" ")
            self.following.append(np.array(model.tokenizer(following, add_special_tokens=False).input_ids))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: BatchItem) -> dict[str, np.ndarray]:
        places, n_frames, epoch = item
        draw = random.Random(f"{self.variation.seed} {epoch} {places}")
        stored = [self.stored(place) for place in places]
        mels = [self.changed(mel, place, epoch) for mel, place in zip(stored, places, strict=True)]
        starts = draw_starts([mel.shape[1] for mel in mels], n_frames, draw)
        labels = self.joined_labels(places)
        if epoch is not None and draw.random() < self.variation.stamped_share:
            stamped = self.stamped_labels(item, stored, starts)
            labels = stamped if len(stamped) <= self.max_tokens else labels
        prompt = np.empty(0, np.int64)
        if epoch is not None and draw.random() < self.variation.prompted_share:
            prompt = self.prompt(places[0], self.max_tokens - len(labels), draw)
        return {
            "input_features": pad_or_trim(join(mels, starts), n_frames),
            "decoder_input_ids": np.array([*prompt, self.start, *labels[:-1]]),
            "labels": np.array([*(IGNORED for _ in prompt), *labels]),
        }

    def __getitems__(self, items: list[BatchItem]) -> list[dict[str, np.ndarray]]:
        """A batch's examples, which from object storage come together."""
        return list(self.shards.folder.map(self.__getitem__, items))

    def prompt(self, place: int, room: int, draw: random.Random) -> np.ndarray:
        """The text of another clip of the same speaker as what came before, if there is room: (n_tokens,) int64."""
        speaker = self.shards.entries[self.numbers[place]].speaker
        others = [other for other in self.places_of[speaker] if other != place and speaker != UNKNOWN_SPEAKER]
        most = min(room, self.longest_prompt) - 1
        if not others or most < 1:
            return np.empty(0, np.int64)
        return np.array([self.previous, *self.following[draw.choice(others)][-most:]])

    def stored(self, place: int) -> np.ndarray:
        """A clip as it lies in its shard: (n_mels, n_frames) float32."""
        return self.shards.mel(self.numbers[place])

    def changed(self, mel: np.ndarray, place: int, epoch: int | None) -> np.ndarray:
        """The same as an epoch has it."""
        change = self.change(place, epoch)
        if change is None:
            return mel
        return change.apply(mel, self.shards.mel(change.seed % len(self.shards)) if change.babble else None)

    def joined_labels(self, places: tuple[int, ...]) -> np.ndarray:
        """The labels of clips that follow one another: (n_tokens,) int64."""
        first, *others = places
        *begin, end = self.labels[first]
        return np.array([*begin, *(token for at in others for token in self.following[at]), end])

    def stamped_labels(self, item: BatchItem, stored: list[np.ndarray], starts: list[int]) -> np.ndarray:
        """The same with timestamps where speech begins and ends in each clip, given the frames that they start at."""
        language, task, _, *first, end = self.labels[item.places[0]]
        texts: list[Iterable[int]] = [first, *(self.following[place] for place in item.places[1:])]
        labels = [language, task]
        for place, mel, start, text in zip(item.places, stored, starts, texts, strict=True):
            change = self.change(place, item.epoch)
            spoken: Iterable[float] = speech_bounds(mel)
            if change:
                spoken = [change.moved(bound, mel.shape[1]) for bound in spoken]
            begin_stamp, end_stamp = (self.stamps[min(round(start + bound), self.window)] for bound in spoken)
            labels += [begin_stamp, *text, end_stamp]
        return np.array([*labels, end])

    def change(self, place: int, epoch: int | None) -> Change | None:
        """How a clip is changed in an epoch."""
        if epoch is None:
            return None
        change = Change.draw(self.variation.augment, f"{self.variation.seed} {epoch} {place}")
        return change.within(self.window, self.shards.entries[self.numbers[place]].n_frames)

    def frames(self, epoch: int | None = None) -> list[int]:
        """Frames of each clip and its margin on the grid, so that training sees the contexts that decoding will use."""
        lengths = []
        for place, number in enumerate(self.numbers):
            n_frames, change = self.shards.entries[number].n_frames, self.change(place, epoch)
            lengths.append(on_grid(change.length(n_frames) if change else n_frames) + self.margin)
        return lengths

    def most_frames(self) -> list[int]:
        """The most frames that each clip and its margin may come to have in any epoch."""
        return [on_grid(self.variation.augment.longest(n_frames)) for n_frames in self.frames()]

    def fits(self, places: list[int]) -> bool:
        """Whether the joined labels of clips are short enough."""
        return len(self.labels[places[0]]) + sum(len(self.following[at]) for at in places[1:]) <= self.max_tokens


def draw_starts(lengths: list[int], n_frames: int, draw: random.Random) -> list[int]:
    """Frames at which clips start that follow one another within n_frames: the first at once, the others after pauses.

    Together the pauses take any part of what the clips leave free.
    """
    free = max(n_frames - sum(lengths), 0)
    pauses = sorted(draw.randint(0, free) for _ in lengths[1:])
    return [before + pause for before, pause in zip(accumulate(lengths[:-1], initial=0), [0, *pauses], strict=True)]


def join(mels: list[np.ndarray], starts: list[int]) -> np.ndarray:
    """Clips one after the other, pauses as silent as what comes before them: (n_mels, n_frames) float32."""
    parts = [mels[0]]
    for (before, mel), (begun, start) in zip(pairwise(mels), pairwise(starts), strict=True):
        pause = start - begun - before.shape[1]
        parts += [np.full((len(mel), pause), mel_floor(before), np.float32), mel]
    joined = np.concatenate(parts, axis=1)
    floored: np.ndarray = np.maximum(joined, joined.max() - np.float32(LOG_MEL_RANGE))
    return floored


def label_tokens(model: SpeechModel, text: str) -> np.ndarray:
    """What the decoder is to say: language, task, no timestamps, the text, the end: (n_tokens,) int64.

    The model shifts them right and puts the one start token before them, so the start token is not among them.
    """
    _, *rest = prompt_tokens(model)
    tokens = model.tokenizer(text, add_special_tokens=False).input_ids
    return np.array([*rest, *tokens, model.whisper.generation_config.eos_token_id])


def collate(items: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Items as a batch: {"input_features": (batch, n_mels, n_frames) float32, the others (batch, longest) int64}.

    Labels are filled with IGNORED; what fills the decoder's inputs reaches no loss. Without items all are empty.
    """
    if not items:
        empty = torch.empty(0, 0, dtype=torch.long)
        return {"input_features": torch.empty(0, 0, 0), "decoder_input_ids": empty, "labels": empty}

    def padded(name: str, value: int) -> torch.Tensor:
        rows = [torch.from_numpy(item[name]) for item in items]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return {
        "input_features": torch.from_numpy(np.stack([item["input_features"] for item in items])),
        "decoder_input_ids": padded("decoder_input_ids", 0),
        "labels": padded("labels", IGNORED),
    }


@dataclass(frozen=True)
class Batching:
    """What a step of training holds: batch_size clips in each of ``accumulation`` batches, in each of the ranks.

    window: frames of the full window. full_share: of the steps, padded to it. filled_share: of those, the ones whose
    windows hold several clips. rank: whose batches are wanted. most_frames: of all windows of a batch, padding
    included, where that is less than batch_size clips take; a window alone may have more.
    """

    batch_size: int
    window: int
    full_share: float = 0.0
    filled_share: float = 0.0
    accumulation: int = 1
    ranks: int = 1
    rank: int = 0
    most_frames: int | None = None

    @property
    def batches(self) -> int:
        """Of a step, in all ranks."""
        return self.accumulation * self.ranks

    def limit(self, n_frames: int) -> int:
        """The most windows of n_frames that a batch may hold."""
        if self.most_frames is None:
            return self.batch_size
        return min(self.batch_size, max(self.most_frames // n_frames, 1))


class LengthBucketSampler(Sampler[list[BatchItem]]):
    """Batches of clips of like length, in an order that seed and epoch alone decide.

    Each ``accumulation`` batches that follow one another are one optimizer step, together with those of the other
    ranks, and its clips and their padding depend on the product of batch_size, accumulation and ranks alone. Every rank
    has as many batches: in an epoch's last step, which may have too few clips, a rank's last batch may be empty. Of the
    steps a share, drawn at random, is padded to the full window, so that the model goes on to understand it:
    transformers' own pipeline knows no other. Each epoch is another order; ``set_epoch`` says which.

    Where most_frames bounds a batch, steps hold as many clips as fit by the most frames that clips may come to have, so
    that all epochs have the same number of them, by which a resumed run finds its place.
    """

    def __init__(self, clips: ClipDataset, batching: Batching, seed: int):
        self.clips, self.batching, self.seed, self.epoch = clips, batching, seed, 0
        self.batch_size, self.drop_last = batching.batch_size, False  # accelerate asks for both
        self.full_steps, self.sizes = (0, list[int]()) if batching.most_frames is None else self.plan()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        batching = self.batching
        steps, rest = divmod(len(self.clips), self.batch_size * batching.batches)
        sizes = self.sizes or [batching.batches] * steps + [rest]
        return sum(-(-min(size, batching.batches) // batching.ranks) for size in sizes)

    def __iter__(self) -> Iterator[list[BatchItem]]:
        batches, ranks = self.all_batches(), self.batching.ranks
        while step := [*islice(batches, self.batching.batches)]:
            yield from step[self.batching.rank :: ranks]
            if self.batching.rank >= len(step) % ranks > 0:
                yield []

    def all_batches(self) -> Iterator[list[BatchItem]]:
        """An epoch's batches of every rank, those of a step one after the other."""
        order = random.Random(f"{self.seed} {self.epoch}")
        lengths, size = self.clips.frames(self.epoch), self.batch_size * self.batching.batches
        numbers = order.sample(range(len(lengths)), len(lengths))
        if self.sizes:
            yield from self.bounded_batches(numbers, lengths, order)
            return
        steps = []
        for start in range(0, len(numbers), MEGA_BATCH * size):
            mega_batch = sorted(numbers[start : start + MEGA_BATCH * size], key=lengths.__getitem__)
            steps += [mega_batch[at : at + size] for at in range(0, len(mega_batch), size)]
        order.shuffle(steps)
        full = [order.random() < self.batching.full_share for _ in steps]
        yield from self.drawn_batches(zip(steps, full, strict=True), lengths, order)

    def drawn_batches(
        self, steps: Iterable[tuple[list[int], bool]], lengths: list[int], order: random.Random
    ) -> Iterator[list[BatchItem]]:
        """The batches of steps, each with whether it is at the full window."""
        whole_first = sorted(steps, key=lambda entry: len(entry[0]) < self.batching.batches)
        for step, at_full_window in whole_first:  # one of too few clips for all its batches is the epoch's last
            yield from self.step_batches(step, at_full_window, lengths, order)

    def plan(self) -> tuple[int, list[int]]:
        """How many of an epoch's steps are at the full window, and the clips of each step, theirs first.

        The others are cut for the longest clips that there may be: any epoch's, sorted, are no longer one by one.
        """
        batching = self.batching
        at_window = batching.limit(batching.window) * batching.batches
        if batching.full_share == 1:
            steps, rest = divmod(len(self.clips), at_window)
            sizes = [at_window] * steps + ([rest] if rest else [])
            return len(sizes), sizes
        frames = sorted((min(most, batching.window) for most in self.clips.most_frames()), reverse=True)
        wanted = math.ceil(batching.full_share * len(self.cut(frames)))
        full = min(wanted, len(frames) // at_window)
        return full, [at_window] * full + self.cut(frames[: len(frames) - full * at_window])

    def cut(self, frames: list[int]) -> list[int]:
        """How many clips steps hold that take up clips of so many frames, the longest first."""
        sizes, place = [], 0
        while place < len(frames):
            sizes.append(min(self.batching.limit(frames[place]) * self.batching.batches, len(frames) - place))
            place += sizes[-1]
        return sizes

    def bounded_batches(
        self, numbers: list[int], lengths: list[int], order: random.Random
    ) -> Iterator[list[BatchItem]]:
        """An epoch's batches where most_frames bounds them, of clips in random order."""
        drawn = sum(self.sizes[: self.full_steps])
        clips = numbers[:drawn] + sorted(numbers[drawn:], key=lengths.__getitem__, reverse=True)
        ends = [*accumulate(self.sizes, initial=0)]
        steps = [(clips[start:end], at < self.full_steps) for at, (start, end) in enumerate(pairwise(ends))]
        order.shuffle(steps)
        yield from self.drawn_batches(steps, lengths, order)

    def step_batches(
        self, step: list[int], at_full_window: bool, lengths: list[int], order: random.Random
    ) -> Iterator[list[BatchItem]]:
        """A step's clips as the items of its batches."""
        window = self.batching.window
        windows: list[tuple[int, ...]] = [(number,) for number in step]
        if at_full_window and order.random() < self.batching.filled_share:
            windows = self.fill_windows(order.sample(step, len(step)), lengths, order)
        n_frames = window if at_full_window else min(max(lengths[number] for number in step), window)
        batches = min(len(windows), self.batching.batches)
        for start, end in pairwise(len(windows) * at // batches for at in range(batches + 1)):
            yield [BatchItem(places, n_frames, self.epoch) for places in windows[start:end]]

    def fill_windows(self, step: list[int], lengths: list[int], order: random.Random) -> list[tuple[int, ...]]:
        """Clips as the windows that hold them: one to as many as fit, and at least a window a batch of the step."""
        most = max(len(step) // self.batching.batches, 1)
        windows: list[list[int]] = []
        room = wanted = 0
        for number in step:
            fits = lengths[number] <= room and len(windows[-1]) < wanted and self.clips.fits([*windows[-1], number])
            if fits:
                windows[-1].append(number)
            else:
                windows.append([number])
                room = self.batching.window
                wanted = order.randint(1, max(min(room // max(lengths[number], 1), most), 1))
            room -= lengths[number]
        return [tuple(places) for places in windows]
