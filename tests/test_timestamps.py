"""Where speech lies in a window, as tokens: found in the features, taught with the text, and read back."""

import numpy as np
import pytest
import torch

from stages.asr.augmentation import AugmentOptions, change_gain
from stages.asr.batches import BatchItem, ClipDataset, Variation
from stages.asr.decoding import greedy_search
from stages.asr.mel import log_mel
from stages.asr.timestamps import Stamped, read_timestamps, speech_bounds, timestamp
from tests.support.material import allow, speech

LEAD, TAIL = 0.4, 0.3  # seconds


def recording(room: float) -> np.ndarray:
    """A second of speech after a lead and before a tail, over the noise of a room of that RMS: its mel."""
    samples = np.concatenate([np.zeros(round(LEAD * 16000)), speech(1.0, seed=5), np.zeros(round(TAIL * 16000))])
    return log_mel(samples + room * np.random.default_rng(1).standard_normal(len(samples)), 80).astype(np.float32)


@pytest.mark.parametrize("room", [0, 0.001, 0.01])
@pytest.mark.parametrize("gain", [0, -30])
def test_speech_begins_and_ends_where_sound_does(room, gain):
    start, end = speech_bounds(change_gain(recording(room), gain))
    assert abs(start - 100 * LEAD) <= 10 and abs(end - 100 * (LEAD + 1)) <= 20  # a syllable fades in and out


@pytest.mark.parametrize("n_frames", [1, 2, 30])
def test_any_clip_has_a_beginning_and_an_end(n_frames):
    for mel in (np.full((80, n_frames), -1.5, np.float32), recording(0.01)[:, :n_frames]):
        start, end = speech_bounds(mel)
        assert 0 <= start < end <= n_frames


def test_a_timestamp_is_the_token_that_whisper_names_so(model):
    for frame, name in ((0, "<|0.00|>"), (2, "<|0.02|>"), (151, "<|1.52|>"), (200, "<|2.00|>"), (900, "<|2.00|>")):
        assert model.tokenizer.convert_ids_to_tokens(timestamp(model, frame)) == name


def read(labels: np.ndarray, model) -> list[Stamped]:
    """The pieces of a label with timestamps, whose prompt must ask for them."""
    names = model.tokenizer.convert_ids_to_tokens(labels[:2].tolist())
    assert names == ["<|sv|>", "<|transcribe|>"]
    return read_timestamps(model, labels[2:-1].tolist())


def test_labels_have_timestamps_where_each_clip_is_spoken(shards, model):
    clips = ClipDataset(shards, model, 448, variation=Variation(stamped_share=1.0))
    places = (0, 5, 3)
    pieces = read(clips[BatchItem(places, 600, 0)]["labels"], model)
    assert [piece.text for piece in pieces] == [shards.entries[place].text for place in places]
    end = 0.0
    for piece, place in zip(pieces, places, strict=True):
        first, last = speech_bounds(shards.mel(place))
        assert min(piece.start, model.window / 100) >= end - 0.011  # half a timestamp's step
        assert piece.end - piece.start == pytest.approx((last - first) / 100, abs=0.03) or piece.end == 2.0
        end = piece.end


def test_timestamps_move_with_the_change_of_a_clip(shards, model):
    options = AugmentOptions(lead_seconds=0.5, cut_seconds=0.05, speed=0.2)
    clips = ClipDataset(shards, model, 448, variation=Variation(options, 1.0))
    for epoch in range(5):
        for place in (0, 2, 4):
            item = BatchItem((place,), 200, epoch)
            (piece,) = read(clips[item]["labels"], model)
            start, end = speech_bounds(clips.changed(clips.stored(place), place, epoch))
            assert piece.start == pytest.approx(start / 100, abs=0.05)
            assert piece.end == pytest.approx(end / 100, abs=0.05)


def test_a_share_of_the_examples_has_them_and_validation_none(shards, model):
    clips = ClipDataset(shards, model, 448, variation=Variation(stamped_share=0.3))
    no_timestamps = vars(model.whisper.generation_config)["no_timestamps_token_id"]
    plain = [
        no_timestamps in clips[BatchItem((place,), 200, epoch)]["labels"] for place in range(12) for epoch in range(40)
    ]
    assert 0.6 < np.mean(plain) < 0.8
    assert all(no_timestamps in clips[BatchItem((place,), 200)]["labels"] for place in range(12))


def test_a_label_that_timestamps_make_too_long_has_none(shards, model):
    longest = max(len(labels) for labels in ClipDataset(shards, model, 448).labels)
    clips = ClipDataset(shards, model, longest, variation=Variation(stamped_share=1.0))
    lengths = [len(clips[BatchItem((place,), 200, 0)]["labels"]) for place in range(12)]
    assert max(lengths) == longest and not clips.dropped


def test_a_model_is_asked_for_timestamps_by_its_prompt(talking, shards):
    stamps = {timestamp(talking, frame) for frame in (10, 50, 100, 150)}
    allow(talking, stamps | set(talking.tokenizer("ab", add_special_tokens=False).input_ids))
    seen = []
    embed = talking.whisper.model.decoder.embed_tokens
    embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rows = greedy_search(talking, torch.from_numpy(shards.mel(5)[None, :, :20]), 20, timestamps=True)
    names = talking.tokenizer.convert_ids_to_tokens(seen[0][0].tolist())
    assert names == ["<|startoftranscript|>", "<|sv|>", "<|transcribe|>"]
    assert len(rows[0]) == 20


def test_pieces_are_read_between_pairs_of_timestamps(model):
    def stamp(seconds: float) -> int:
        return timestamp(model, 100 * seconds)

    def words(text: str) -> list[int]:
        return model.tokenizer(text, add_special_tokens=False).input_ids

    tokens = [stamp(0.1), *words(" hej"), stamp(0.5), stamp(0.7), *words(" på dig"), stamp(1.24), *words("rest")]
    assert read_timestamps(model, tokens) == [Stamped(0.1, 0.5, "hej"), Stamped(0.7, 1.24, "på dig")]
    assert read_timestamps(model, words("hej")) == []
