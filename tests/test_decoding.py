from itertools import pairwise

import numpy as np
import pytest
import torch

from stages.asr.decoder import ROOM
from stages.asr.decoding import (
    SPARE_TOKENS,
    TOKENS_PER_SECOND,
    UNASKED,
    batch_by_length,
    context_frames,
    decode,
    greedy_search,
    on_grid,
    prompt_tokens,
    token_limit,
)
from stages.asr.mel import mel_floor, pad_or_trim
from stages.asr.model import SpeechModel
from stages.asr.shards import Shards
from tests.support.material import TEXTS, allow, sounds, speech, write_shards


def allow_letters(model, letters: str) -> None:
    """Let a model say nothing but letters of one byte, without an end."""
    allow(model, set(model.tokenizer(letters, add_special_tokens=False).input_ids))


@pytest.fixture
def precise(talking) -> SpeechModel:
    """The talking Whisper in float64: where batches of another shape round otherwise, no two tokens are that close."""
    talking.whisper.double()
    return talking


def full_windows(shards: Shards) -> torch.Tensor:
    return torch.stack([torch.from_numpy(pad_or_trim(shards.mel(number), 200)) for number in range(len(shards))])


def test_the_prompt_is_start_language_task_and_no_timestamps(model):
    tokens = model.tokenizer.convert_ids_to_tokens(prompt_tokens(model))
    assert tokens == ["<|startoftranscript|>", "<|sv|>", "<|transcribe|>", "<|notimestamps|>"]


@pytest.mark.parametrize("begin", [None, [256, *range(40, 120)]])
def test_greedy_at_the_full_window_says_what_generate_says(precise, shards, begin):
    config = precise.whisper.generation_config
    config.begin_suppress_tokens = begin
    mels, most = full_windows(shards).double(), 40
    ours = greedy_search(precise, mels, most)
    theirs = precise.whisper.generate(input_features=mels, max_new_tokens=most, num_beams=1, do_sample=False)
    start, end = prompt_tokens(precise), config.eos_token_id
    for mine, row in zip(ours, theirs.tolist(), strict=True):
        row = row[len(start) :] if row[: len(start)] == start else row
        assert mine == row[: row.index(end)] if end in row else mine == row
    assert len({tuple(row) for row in ours}) > 6
    lengths = [len(row) for row in ours]
    assert min(lengths) < most, "no text ends by itself: turn the weights of precise"
    assert max(lengths) > 5


def test_what_is_suppressed_is_never_said(talking, shards):
    config = talking.whisper.generation_config
    mels = full_windows(shards)
    said = {token for row in greedy_search(talking, mels, 30) for token in row}
    config.suppress_tokens = [*config.suppress_tokens, *said]
    others = greedy_search(talking, mels, 30)
    assert not said & {token for row in others for token in row}
    first = {row[0] for row in others}
    config.begin_suppress_tokens = list(first)
    again = greedy_search(talking, mels, 30)
    assert not first & {row[0] for row in again if row}
    assert first & {token for row in again for token in row[1:]}


def test_a_text_does_not_depend_on_its_neighbours(precise, shards):
    precise.context = "clip"
    together = decode(precise, shards, 32)
    assert len(set(together)) > 8
    for batch_size in (1, 5):
        assert decode(precise, shards, batch_size) == together


def test_texts_come_in_the_order_of_the_clips(precise, shards, tmp_path):
    together = decode(precise, shards, 4)
    for number, (name, samples) in enumerate(sounds().items()):
        alone = Shards(write_shards(tmp_path / name, {name: samples}))
        assert decode(precise, alone, 4) == [together[number]]


@pytest.mark.parametrize("context", ["clip", "full"])
def test_a_text_is_bounded_by_its_own_audio(talking, shards, context):
    talking.context = context
    allow_letters(talking, "abcdefg")
    texts = decode(talking, shards, 8)
    for text, entry in zip(texts, shards.entries, strict=True):
        assert set(text) <= set("abcdefg")
        seconds = on_grid(entry.n_frames) / 100
        assert len(text) == token_limit(entry.n_frames) == int(seconds * TOKENS_PER_SECOND) + SPARE_TOKENS


def test_max_length_bounds_a_text_too(talking, shards):
    allow_letters(talking, "abc")
    talking.whisper.generation_config.max_length = 4 + 6
    assert {len(text) for text in decode(talking, shards, 8)} == {6}


def test_a_model_that_ends_at_once_says_nothing(talking, shards):
    allow(talking, {talking.whisper.generation_config.eos_token_id})
    assert decode(talking, shards, 8) == [""] * len(shards)


def test_a_text_is_on_one_line(talking, shards):
    allow_letters(talking, "\n\t\rab")
    texts = decode(talking, shards, 8)
    assert all(text == " ".join(text.split()) for text in texts)
    assert any(" " in text for text in texts)


@pytest.mark.parametrize(("context", "frames"), [("clip", {50, 100, 150, 200}), ("full", {200})])
def test_the_encoder_sees_the_context_that_was_trained(talking, shards, context, frames):
    talking.context = context
    seen = []
    encoder = talking.whisper.model.encoder
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decode(talking, shards, 3)
    assert {batch.shape[2] for batch in seen} == frames
    assert sum(len(batch) for batch in seen) == len(shards)


def test_the_context_is_the_clip_up_to_the_grid_but_not_beyond_the_window(model, tmp_path):
    read = Shards(write_shards(tmp_path, {"short": speech(0.3), "whole": speech(2.0)}))
    assert [entry.n_frames for entry in read.entries] == [32, 202]
    model.context = "clip"
    assert [context_frames(model, entry.n_frames) for entry in read.entries] == [50, 200]
    model.margin = 50
    assert [context_frames(model, entry.n_frames) for entry in read.entries] == [100, 200]
    model.context = "full"
    assert [context_frames(model, entry.n_frames) for entry in read.entries] == [200, 200]


def test_a_mel_is_padded_with_its_floor_or_cropped():
    mel = np.random.default_rng(1).uniform(-1, 1, (80, 60)).astype(np.float32)
    longer = pad_or_trim(mel, 100)
    assert longer.dtype == np.float32
    assert np.array_equal(longer[:, :60], mel)
    assert (longer[:, 60:] == np.float32(mel_floor(mel))).all()
    assert np.array_equal(pad_or_trim(mel, 40), mel[:, :40])


@pytest.mark.parametrize("context", ["clip", "full"])
def test_batches_hold_clips_of_like_length_and_no_more_frames_than_full_windows_have(model, context):
    model.context = context
    lengths = [int(frames) for frames in np.random.default_rng(1).integers(1, model.window + 1, 200)] + [3] * 40
    batches = list(batch_by_length(model, lengths, 5))
    numbers = [number for batch in batches for number in batch]
    assert numbers == sorted(range(len(lengths)), key=lambda number: (on_grid(lengths[number]), number))
    for batch, following in pairwise(batches):
        frames = context_frames(model, lengths[batch[-1]])
        assert len(batch) * frames <= 5 * model.window and len(batch) <= 20
        more = (len(batch) + 1) * context_frames(model, lengths[following[0]])
        assert more > 5 * model.window or len(batch) == 20
    assert len(batches[0]) == (20 if context == "clip" else 5)
    for part in (batches[::2], batches[1::2]):  # as two ranks have them, and decoding finds the same batches again
        mine = [number for batch in part for number in batch]
        again = batch_by_length(model, [lengths[number] for number in mine], 5)
        assert [[mine[place] for place in batch] for batch in again] == part


@pytest.mark.parametrize("asked", [1, UNASKED])
def test_texts_that_end_are_left_out_and_change_nothing_for_the_others(precise, shards, monkeypatch, asked):
    """Each text as it is alone: lengths, limits and ends differ, and room for keys is doubled on the way."""
    monkeypatch.setattr("stages.asr.decoding.ask_every", lambda device: asked)
    mels = [torch.from_numpy(shards.mel(number)[:, : 20 + 10 * (number // 3)]) for number in range(len(shards))]
    limits = [0, 1, 3, 80, 9, 80, 2, 80, 5, 80, 80, 80]
    rows_of = []
    precise.whisper.proj_out.register_forward_pre_hook(lambda _, inputs: rows_of.append(len(inputs[0])))
    together = greedy_search(precise, mels, limits)
    assert rows_of[0] == len(mels) and rows_of == sorted(rows_of, reverse=True) and len(set(rows_of)) > 2
    monkeypatch.setattr("stages.asr.decoding.ask_every", lambda device: 1)
    assert together == [greedy_search(precise, [mel], most)[0] for mel, most in zip(mels, limits, strict=True)]
    ends = [len(row) < most for row, most in zip(together, limits, strict=True)]
    assert any(ends) and max(map(len, together)) > ROOM


def test_progress_is_told_how_many_batches_there_are(talking, shards):
    counted = []

    def progress(batches, total):
        for batch in batches:
            counted.append(total)
            yield batch

    assert len(decode(talking, shards, 3, progress)) == len(TEXTS) * 2
    assert set(counted) == {len(counted)}
