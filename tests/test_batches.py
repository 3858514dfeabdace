import random
import statistics
from copy import copy
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stages.asr.augmentation import AugmentOptions
from stages.asr.batches import IGNORED, Batching, BatchItem, ClipDataset, LengthBucketSampler, Variation, collate
from stages.asr.clips import UNKNOWN_SPEAKER
from stages.asr.mel import LOG_MEL_RANGE, mel_floor
from stages.asr.shards import Shards
from tests.support.material import TEXTS, speech, write_shards

LENGTHS = [50 * (1 + number * 7 % 40) for number in range(1000)]


class Clips(ClipDataset):
    """Clips of given lengths, without features, of ten tokens each."""

    def __init__(self, lengths: list[int], max_tokens: int = 448):
        self.lengths, self.max_tokens = lengths, max_tokens
        self.numbers = [*range(len(lengths))]
        self.labels = self.following = [range(10)] * len(lengths)

    def frames(self, epoch: int | None = None) -> list[int]:
        return self.lengths

    def most_frames(self) -> list[int]:
        return self.lengths


class VaryingClips(Clips):
    """Clips that come to have less than their given lengths, others in each epoch."""

    def frames(self, epoch: int | None = None) -> list[int]:
        draw = random.Random(epoch)
        return [max(length - 50 * draw.randrange(4), 50) for length in self.lengths]


def batches(epoch: int = 0, seed: int = 1, max_tokens: int = 448, **batching) -> list[list[BatchItem]]:
    values = {"batch_size": 8, "window": 2000} | batching
    sampler = LengthBucketSampler(Clips(LENGTHS, max_tokens), Batching(**values), seed)
    sampler.set_epoch(epoch)
    result = list(sampler)
    assert len(sampler) == len(result)
    return result


def numbers(batch: list[BatchItem]) -> list[int]:
    """The clips of a batch, in their order."""
    return [*chain.from_iterable(item.places for item in batch)]


def one(place: int, n_frames: int) -> BatchItem:
    """A clip alone, as it is."""
    return BatchItem((place,), n_frames)


@pytest.fixture
def dataset(shards, model) -> ClipDataset:
    return ClipDataset(shards, model, 448)


def test_the_decoder_sees_one_start_token(dataset, model):
    seen = []
    embed = model.whisper.model.decoder.embed_tokens
    embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = collate([dataset[one(number, 200)] for number in range(5)])
    loss = model.whisper(**batch).loss
    (tokens,) = seen
    start = model.whisper.generation_config.decoder_start_token_id
    assert model.tokenizer.convert_ids_to_tokens(start) == "<|startoftranscript|>"
    assert (tokens[:, 0] == start).all()
    assert (tokens == start).sum() == 5
    assert torch.isfinite(loss)


def test_labels_are_language_task_no_timestamps_text_and_end(dataset, model):
    for number, text in zip(range(len(dataset)), TEXTS * 2, strict=True):
        tokens = model.tokenizer.convert_ids_to_tokens(dataset[one(number, 50)]["labels"].tolist())
        assert tokens[:3] == ["<|sv|>", "<|transcribe|>", "<|notimestamps|>"]
        assert tokens[-1] == "<|endoftext|>"
        assert not [token for token in tokens[3:-1] if token.startswith("<|")]
        assert model.tokenizer.decode(dataset[one(number, 50)]["labels"], skip_special_tokens=True) == text


def test_labels_say_the_models_own_language_and_task(shards, model):
    config = model.whisper.generation_config
    config.language, config.task = "de", "translate"
    tokens = ClipDataset(shards, model, 448)[one(0, 50)]["labels"][:2].tolist()
    assert model.tokenizer.convert_ids_to_tokens(tokens) == ["<|de|>", "<|translate|>"]


def test_labels_that_are_too_long_are_dropped_and_listed(tmp_path, model):
    texts = ("a" * 10, "a" * 11, "å" * 6)  # å is two bytes, and the tiny tokenizer has only bytes
    folder = write_shards(tmp_path, {name: speech(0.5) for name in ("fits", "long", "wide")}, texts=texts)
    clips = ClipDataset(Shards(folder), model, 10 + 4)
    assert clips.dropped == {"long": "label too long", "wide": "label too long"}
    assert len(clips) == len(clips.frames()) == 1
    assert len(clips[one(0, 50)]["labels"]) == 14


def test_an_example_is_its_clip_padded_with_the_floor(dataset, shards):
    for place in (0, 7, 11):
        mel = shards.mel(place)
        features = dataset[one(place, 400)]["input_features"]
        assert features.shape == (80, 400)
        assert np.array_equal(features[:, : mel.shape[1]], mel)
        assert (features[:, mel.shape[1] :] == np.float32(mel_floor(mel))).all()


def test_frames_hold_the_clip(dataset, shards):
    for frames, entry in zip(dataset.frames(), shards.entries, strict=True):
        assert entry.n_frames <= frames < entry.n_frames + 50


def test_a_batch_has_the_models_shapes_and_types(dataset):
    batch = collate([dataset[one(number, 150)] for number in range(3)])
    labels = [dataset[one(number, 150)]["labels"] for number in range(3)]
    assert batch["input_features"].shape == (3, 80, 150)
    assert batch["input_features"].dtype == torch.float32
    assert batch["labels"].shape == (3, max(map(len, labels)))
    assert batch["labels"].dtype == torch.int64
    for row, own in zip(batch["labels"], labels, strict=True):
        assert row[: len(own)].tolist() == own.tolist()
        assert (row[len(own) :] == IGNORED).all()


def test_an_epoch_has_each_clip_once():
    for epoch in range(2):
        for full_share, filled_share in ((0, 0), (0.5, 0.5), (1, 1)):
            clips = chain.from_iterable(map(numbers, batches(epoch, full_share=full_share, filled_share=filled_share)))
            assert sorted(clips) == list(range(len(LENGTHS)))
    assert {len(batch) for batch in batches()} == {8}
    assert sorted(len(batch) for batch in batches(batch_size=48))[:2] == [1000 % 48, 48]


def test_seed_and_epoch_alone_decide_the_order():
    assert batches(epoch=3) == batches(epoch=3)
    orders = [batches(epoch=0), batches(epoch=1), batches(epoch=0, seed=2)]
    assert all(first != second for first, second in [*pairwise(orders), (orders[0], orders[2])])
    first, second = ({frozenset(numbers(batch)) for batch in order} for order in orders[:2])
    assert len(first & second) < 5  # not only the order, the company changes too


@pytest.mark.parametrize(("batch_size", "accumulation"), [(32, 2), (16, 4), (1, 64)])
def test_a_step_has_the_same_clips_and_padding_however_it_is_cut_up(batch_size, accumulation):
    whole = batches(full_share=0.3, batch_size=64)
    parts = batches(full_share=0.3, batch_size=batch_size, accumulation=accumulation)
    assert max(map(len, parts)) == batch_size
    steps = [list(chain.from_iterable(parts[at : at + accumulation])) for at in range(0, len(parts), accumulation)]
    if accumulation <= 1000 % 64:
        assert steps == whole
    else:  # the clips that are left over are too few for a step of so many batches
        left = min(whole, key=len)
        assert steps == [step for step in whole if step != left] + [left]


def test_the_loader_that_training_prepares_passes_the_epoch_on():
    from accelerate import Accelerator

    class Numbers(Clips):
        def __getitems__(self, items):
            return [item.places[0] for item in items]

    data = Numbers(LENGTHS)
    sampler = LengthBucketSampler(data, Batching(8, 2000), 1)
    loader = Accelerator(cpu=True).prepare(DataLoader(data, batch_sampler=sampler, collate_fn=list))
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        assert list(loader) == [*map(numbers, batches(epoch))]


def test_a_batch_is_as_long_as_its_longest_clip():
    for batch in batches():
        assert {item.n_frames for item in batch} == {max(LENGTHS[number] for number in numbers(batch))}


@pytest.mark.parametrize("full_share", [0.0, 0.1, 0.5, 1.0])
def test_the_full_window_gets_its_share(full_share):
    full = [
        batch[0].n_frames == 2000
        for epoch in range(20)
        for batch in batches(epoch, full_share=full_share, batch_size=20)
        if max(LENGTHS[number] for number in numbers(batch)) < 2000
    ]
    assert len(full) > 900
    deviation = (full_share * (1 - full_share) / len(full)) ** 0.5
    assert abs(statistics.mean(full) - full_share) <= 3 * deviation


def test_filled_windows_hold_one_to_as_many_clips_as_fit():
    filled = [item for batch in batches(full_share=1.0, filled_share=1.0) for item in batch]
    sums = [sum(LENGTHS[place] for place in item.places) for item in filled]
    assert max(sums) <= 2000 and {item.n_frames for item in filled} == {2000}
    short = [len(item.places) for item in filled if LENGTHS[item.places[0]] <= 250]
    assert {1, 2, 3} < {*short}  # a few, and one, beside as many as there is room for
    some = batches(full_share=1.0, filled_share=0.5)
    short_ones = [batch for batch in some if max(LENGTHS[place] for place in numbers(batch)) <= 500]
    assert 0.2 < statistics.mean(max(len(item.places) for item in batch) > 1 for batch in short_ones) < 0.8


def test_filled_windows_leave_a_window_for_each_batch_of_a_step():
    for batch in batches(full_share=1.0, filled_share=1.0, batch_size=2, accumulation=4):
        assert 1 <= len(batch) <= 2


def test_filled_windows_hold_no_more_text_than_a_label_may():
    items = [item for batch in batches(full_share=1.0, filled_share=1.0, max_tokens=25) for item in batch]
    assert max(len(item.places) for item in items) == 2


def test_a_filled_window_has_its_clips_and_texts_one_after_the_other(dataset, shards, model):
    places = (3, 0, 5)
    example = dataset[BatchItem(places, 700, 0)]
    entries = [shards.entries[place] for place in places]
    text = " ".join(entry.text for entry in entries)
    assert model.tokenizer.decode(example["labels"], skip_special_tokens=True) == text
    assert (example["labels"][0], example["labels"][-1]) == (dataset.labels[0][0], dataset.labels[0][-1])
    found, at = example["input_features"], 0
    assert found.shape == (80, 700)
    for entry, mel in zip(entries, map(shards.mel, places), strict=True):
        at = next(
            start
            for start in range(at, 700 - entry.n_frames + 1)
            if np.array_equal(found[:, start : start + entry.n_frames], np.maximum(mel, found.max() - 2))
        )
        at += entry.n_frames
    assert found.min() >= found.max() - np.float32(LOG_MEL_RANGE)


def test_the_decoders_input_is_what_whisper_makes_of_the_labels(dataset, model):
    batch = collate([dataset[one(place, 200)] for place in range(4)])
    own = model.whisper(input_features=batch["input_features"], labels=batch["labels"]).loss
    assert model.whisper(**batch).loss == own
    batch["decoder_input_ids"][:, 5] = 7
    assert model.whisper(**batch).loss != own


def test_a_share_of_the_examples_follows_another_text_of_the_speakers(shards, model):
    clips = ClipDataset(shards, model, 448, variation=Variation(prompted_share=0.5))
    texts = {entry.id: (entry.text, entry.speaker) for entry in shards.entries}
    prompted = []
    for place, entry in enumerate(shards.entries):
        for epoch in range(20):
            example = clips[BatchItem((place,), 200, epoch)]
            inputs, labels = example["decoder_input_ids"], example["labels"]
            assert len(inputs) == len(labels)
            names = model.tokenizer.convert_ids_to_tokens(inputs.tolist())
            at = names.index("<|startoftranscript|>")
            prompted.append(at > 0)
            assert (labels[:at] == IGNORED).all() and np.array_equal(labels[at:], clips.labels[place])
            assert np.array_equal(inputs[at + 1 :], labels[at:-1])
            if at:
                assert names[0] == "<|startofprev|>"
                before = model.tokenizer.decode(inputs[1:at])
                same = {
                    text for name, (text, speaker) in texts.items() if speaker == entry.speaker and name != entry.id
                }
                assert before.strip() in same
    assert 0.35 < statistics.mean(prompted) < 0.65


def test_nobodys_other_text_is_that_of_an_unknown_speaker(shards, model):
    strangers = copy(shards)
    strangers.entries = [replace(entry, speaker=UNKNOWN_SPEAKER) for entry in shards.entries]
    clips = ClipDataset(strangers, model, 448, variation=Variation(prompted_share=1.0))
    assert not any(len(clips.prompt(place, 400, random.Random(1))) for place in range(len(clips)))


def test_a_text_before_takes_only_the_room_that_a_label_leaves(shards, model):
    longest = max(len(labels) for labels in ClipDataset(shards, model, 448).labels)
    clips = ClipDataset(shards, model, longest, variation=Variation(prompted_share=1.0))
    lengths = [len(clips[BatchItem((place,), 200, 0)]["labels"]) for place in range(len(clips))]
    assert max(lengths) == longest and min(lengths) > min(map(len, clips.labels))


def test_an_epoch_changes_clips_and_says_how_long_they_are_then(shards, model):
    options = AugmentOptions(lead_seconds=0.5, cut_seconds=0.05, gain=20, noise=0.5, babble=0.5, speed=0.2)
    clips = ClipDataset(shards, model, 448, variation=Variation(options, seed=3))
    plain = ClipDataset(shards, model, 448)
    lengths = {epoch: clips.frames(epoch) for epoch in range(3)}
    assert clips.frames() == plain.frames() not in lengths.values()
    assert len({*map(tuple, lengths.values())}) == 3
    for epoch, frames in lengths.items():
        for place, n_frames in enumerate(frames):
            changed = clips.changed(clips.stored(place), place, epoch)
            assert n_frames - 50 < changed.shape[1] <= min(n_frames, model.window)
    items = [BatchItem((place,), 200, 1) for place in range(len(clips))]
    again = ClipDataset(shards, model, 448, variation=Variation(options, seed=3))
    other = ClipDataset(shards, model, 448, variation=Variation(options, seed=4))
    for item in reversed(items):  # whatever the order, and whoever reads it
        assert np.array_equal(clips[item]["input_features"], again[item]["input_features"])
        assert not np.array_equal(clips[item]["input_features"], other[item]["input_features"])
        assert np.array_equal(clips[item._replace(epoch=None)]["input_features"], plain[item]["input_features"])


def test_a_clip_that_brushes_the_windows_end_is_cropped_to_it():
    assert list(LengthBucketSampler(Clips([250]), Batching(1, 200), 1)) == [[BatchItem((0,), 200, 0)]]


def test_clips_of_a_batch_are_of_like_length():
    def spread(groups) -> float:
        return statistics.mean(max(group) - min(group) for group in groups)

    ours = [[LENGTHS[number] for number in numbers(batch)] for batch in batches()]
    order = [LENGTHS[number] for number in chain.from_iterable(map(numbers, batches()))]
    mixed = [order[start::125] for start in range(125)]
    assert spread(ours) < spread(mixed) / 10


def test_long_and_short_batches_come_mixed():
    lengths = [batch[0].n_frames for batch in batches()]
    assert np.corrcoef(lengths[:-1], lengths[1:])[0, 1] < 0.3


@pytest.mark.parametrize("n_clips", [1000, 1001, 1007, 961, 5])
@pytest.mark.parametrize(("ranks", "accumulation"), [(2, 1), (2, 4), (3, 2)])
def test_ranks_share_the_steps_that_one_process_has(n_clips, ranks, accumulation):
    """Each rank as many batches as the others, each clip once, and the same clips and padding a step."""

    def steps(accumulation: int, **rank: int) -> list[list[list[BatchItem]]]:
        batching = Batching(4, 2000, 0.3, 0.5, accumulation, **rank)
        sampler = LengthBucketSampler(Clips((2 * LENGTHS)[:n_clips]), batching, 1)
        sampler.set_epoch(3)
        given = [*sampler]
        assert len(given) == len(sampler)
        return [given[start : start + accumulation] for start in range(0, len(given), accumulation)]

    alone = steps(accumulation * ranks)
    shares = [steps(accumulation, ranks=ranks, rank=rank) for rank in range(ranks)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        assert sorted(chain(*chain(*parts))) == sorted(chain(*whole))
    assert all(batch for share in shares for step in share[:-1] for batch in step)
    clips = sorted(chain.from_iterable(numbers(batch) for share in shares for step in share for batch in step))
    assert clips == [*range(n_clips)]


def test_a_batch_without_clips_is_empty():
    assert {name: len(values) for name, values in collate([]).items()} == {
        "input_features": 0,
        "decoder_input_ids": 0,
        "labels": 0,
    }


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("full_share", "filled_share"), [(0.0, 0.0), (0.2, 0.5), (1.0, 0.5)])
def test_seconds_bound_a_batch_and_each_epoch_has_every_clip_once_in_as_many_batches(
    accumulation, full_share, filled_share
):
    clips, most = VaryingClips(LENGTHS), 12_000
    batching = Batching(64, 2000, full_share, filled_share, accumulation, most_frames=most)
    sampler = LengthBucketSampler(clips, batching, 1)
    counts, orders = [], []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        found, lengths = list(sampler), clips.frames(epoch)
        assert found == list(sampler)
        assert len(found) == len(sampler)
        assert sorted(chain.from_iterable(map(numbers, found))) == [*range(1000)]
        for batch in found:
            assert len(batch) <= 64 and sum(item.n_frames for item in batch) <= most
            assert all(sum(lengths[place] for place in item.places) <= item.n_frames for item in batch)
        steps = [found[at : at + accumulation] for at in range(0, len(found), accumulation)]
        assert all(len({item.n_frames for batch in step for item in batch}) == 1 for step in steps)
        counts.append(sum(step[0][0].n_frames == 2000 for step in steps))
        orders.append([*map(numbers, found)])
        used = sum(sum(item.n_frames for item in batch) for batch in found[:-accumulation]) / most
        assert full_share or used > 0.7 * (len(found) - accumulation)
    assert len({*map(str, orders)}) == 4
    if full_share < 1:
        assert min(counts) >= full_share * len(steps) * 0.8 and max(counts) <= full_share * len(steps) * 1.2 + 5
    assert max(map(len, found)) == 6 if full_share == 1 else max(map(len, found)) >= 20


def test_seconds_too_few_for_a_clip_leave_it_alone():
    sampler = LengthBucketSampler(Clips([200, 100, 100]), Batching(8, 200, most_frames=150), 1)
    assert sorted(map(numbers, sampler), key=str) == [[0], [1], [2]]
