import statistics
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stages.asr.batches import IGNORED, ClipDataset, LengthBucketSampler, collate
from stages.asr.mel import mel_floor
from stages.asr.shards import Shards
from tests.support.material import TEXTS, speech, write_shards

LENGTHS = [50 * (1 + number * 7 % 40) for number in range(1000)]


def batches(
    epoch: int = 0, seed: int = 1, full_share: float = 0.0, batch_size: int = 8, accumulation: int = 1
) -> list[list[tuple[int, int]]]:
    sampler = LengthBucketSampler(LENGTHS, batch_size, 2000, full_share, seed, accumulation)
    sampler.set_epoch(epoch)
    result = list(sampler)
    assert len(sampler) == len(result)
    return result


@pytest.fixture
def dataset(shards, model) -> ClipDataset:
    return ClipDataset(shards, model, 448)


def test_the_decoder_sees_one_start_token(dataset, model):
    seen = []
    embed = model.whisper.model.decoder.embed_tokens
    embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = collate([dataset[number, 200] for number in range(5)])
    loss = model.whisper(**batch).loss
    (tokens,) = seen
    start = model.whisper.generation_config.decoder_start_token_id
    assert model.tokenizer.convert_ids_to_tokens(start) == "<|startoftranscript|>"
    assert (tokens[:, 0] == start).all()
    assert (tokens == start).sum() == 5
    assert torch.isfinite(loss)


def test_labels_are_language_task_no_timestamps_text_and_end(dataset, model):
    for number, text in zip(range(len(dataset)), TEXTS * 2, strict=True):
        tokens = model.tokenizer.convert_ids_to_tokens(dataset[number, 50]["labels"].tolist())
        assert tokens[:3] == ["<|sv|>", "<|transcribe|>", "<|notimestamps|>"]
        assert tokens[-1] == "<|endoftext|>"
        assert not [token for token in tokens[3:-1] if token.startswith("<|")]
        assert model.tokenizer.decode(dataset[number, 50]["labels"], skip_special_tokens=True) == text


def test_labels_say_the_models_own_language_and_task(shards, model):
    config = model.whisper.generation_config
    config.language, config.task = "de", "translate"
    tokens = ClipDataset(shards, model, 448)[0, 50]["labels"][:2].tolist()
    assert model.tokenizer.convert_ids_to_tokens(tokens) == ["<|de|>", "<|translate|>"]


def test_labels_that_are_too_long_are_dropped_and_listed(tmp_path, model):
    texts = ("a" * 10, "a" * 11, "å" * 6)  # å is two bytes, and the tiny tokenizer has only bytes
    folder = write_shards(tmp_path, {name: speech(0.5) for name in ("fits", "long", "wide")}, texts=texts)
    clips = ClipDataset(Shards(folder), model, 10 + 4)
    assert clips.dropped == ["long", "wide"]
    assert len(clips) == len(clips.frames()) == 1
    assert len(clips[0, 50]["labels"]) == 14


def test_an_example_is_its_clip_padded_with_the_floor(dataset, shards):
    for place in (0, 7, 11):
        mel = shards.mel(place)
        features = dataset[place, 400]["input_features"]
        assert features.shape == (80, 400)
        assert np.array_equal(features[:, : mel.shape[1]], mel)
        assert (features[:, mel.shape[1] :] == np.float32(mel_floor(mel))).all()


def test_frames_hold_the_clip(dataset, shards):
    for frames, entry in zip(dataset.frames(), shards.entries, strict=True):
        assert entry.n_frames <= frames < entry.n_frames + 50


def test_a_batch_has_the_models_shapes_and_types(dataset):
    batch = collate([dataset[number, 150] for number in range(3)])
    labels = [dataset[number, 150]["labels"] for number in range(3)]
    assert batch["input_features"].shape == (3, 80, 150)
    assert batch["input_features"].dtype == torch.float32
    assert batch["labels"].shape == (3, max(map(len, labels)))
    assert batch["labels"].dtype == torch.int64
    for row, own in zip(batch["labels"], labels, strict=True):
        assert row[: len(own)].tolist() == own.tolist()
        assert (row[len(own) :] == IGNORED).all()


def test_an_epoch_has_each_clip_once():
    for epoch in range(2):
        clips = [number for batch in batches(epoch) for number, _ in batch]
        assert sorted(clips) == list(range(len(LENGTHS)))
    assert {len(batch) for batch in batches()} == {8}
    assert sorted(len(batch) for batch in batches(batch_size=48))[:2] == [1000 % 48, 48]


def test_seed_and_epoch_alone_decide_the_order():
    assert batches(epoch=3) == batches(epoch=3)
    orders = [batches(epoch=0), batches(epoch=1), batches(epoch=0, seed=2)]
    assert all(first != second for first, second in [*pairwise(orders), (orders[0], orders[2])])
    first, second = ({frozenset(number for number, _ in batch) for batch in order} for order in orders[:2])
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

    sampler = LengthBucketSampler(LENGTHS, 8, 2000, 0.0, 1)
    data = {(number, frames): number for number in range(1000) for frames in {*LENGTHS}}
    loader = Accelerator(cpu=True).prepare(DataLoader(data, batch_sampler=sampler, collate_fn=list))
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        assert list(loader) == [[number for number, _ in batch] for batch in batches(epoch)]


def test_a_batch_is_as_long_as_its_longest_clip():
    for batch in batches():
        assert {frames for _, frames in batch} == {max(LENGTHS[number] for number, _ in batch)}


@pytest.mark.parametrize("full_share", [0.0, 0.1, 0.5, 1.0])
def test_the_full_window_gets_its_share(full_share):
    full = [
        batch[0][1] == 2000
        for epoch in range(20)
        for batch in batches(epoch, full_share=full_share, batch_size=20)
        if max(LENGTHS[number] for number, _ in batch) < 2000
    ]
    assert len(full) > 900
    deviation = (full_share * (1 - full_share) / len(full)) ** 0.5
    assert abs(statistics.mean(full) - full_share) <= 3 * deviation


def test_a_clip_that_brushes_the_windows_end_is_cropped_to_it():
    assert list(LengthBucketSampler([250], 1, 200, 0.0, 1)) == [[(0, 200)]]


def test_clips_of_a_batch_are_of_like_length():
    def spread(groups) -> float:
        return statistics.mean(max(group) - min(group) for group in groups)

    ours = [[LENGTHS[number] for number, _ in batch] for batch in batches()]
    order = [LENGTHS[number] for number, _ in chain.from_iterable(batches())]
    mixed = [order[start::125] for start in range(125)]
    assert spread(ours) < spread(mixed) / 10


def test_long_and_short_batches_come_mixed():
    lengths = [batch[0][1] for batch in batches()]
    assert np.corrcoef(lengths[:-1], lengths[1:])[0, 1] < 0.3
