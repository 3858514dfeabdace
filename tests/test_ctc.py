"""The CTC loss against a sum over all its paths, and the head that training alone has."""

import itertools
import math

import numpy as np
import pytest
import torch

from stages.asr.batches import IGNORED, ClipDataset
from stages.asr.model import load_model, save_model
from stages.asr.shards import Shards
from stages.training.ctc import HEAD, POOLED, add_head, blank, count_too_long, ctc_loss, remove_head
from tests.support.material import speech, write_shards


@pytest.fixture
def headed(model):
    """The tiny Whisper with a head."""
    add_head(model, 1)
    return model


def labels_of(model, *texts: str) -> torch.Tensor:
    """Labels as a batch has them: prompt, text, end, and what is ignored."""
    config = model.whisper.generation_config
    prompt = [config.lang_to_id["<|sv|>"], config.task_to_id["transcribe"], config.no_timestamps_token_id]
    rows = [
        torch.tensor([*prompt, *model.tokenizer(text, add_special_tokens=False).input_ids, config.eos_token_id])
        for text in texts
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def sum_over_paths(probabilities: np.ndarray, text: list[int], end: int) -> float:
    """The loss by its definition: over every sequence of tokens that collapses to the text."""
    tokens = sorted({*text, end})
    total = 0.0
    for path in itertools.product(tokens, repeat=len(probabilities)):
        if [token for token, _ in itertools.groupby(path) if token != end] == text:
            total += math.prod(row[token] for row, token in zip(probabilities, path, strict=True))
    return -math.log(total)


def test_it_is_the_sum_over_all_paths_of_the_texts_pieces(headed):
    hidden = torch.randn(2, 5 * POOLED - 1, headed.whisper.config.d_model, generator=torch.Generator().manual_seed(2))
    labels = labels_of(headed, "hej", "nn")
    found = ctc_loss(headed, hidden, labels)
    wanted = 0.0
    for states, text in zip(hidden, ("hej", "nn"), strict=True):
        pooled = [states[at : at + POOLED].mean(0) for at in range(0, len(states), POOLED)]
        rows = torch.stack([getattr(headed.whisper, HEAD)(state) for state in pooled]).double().softmax(-1)
        pieces = headed.tokenizer(text, add_special_tokens=False).input_ids
        wanted += sum_over_paths(rows.detach().numpy(), pieces, blank(headed))
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_a_text_too_long_for_its_clip_and_an_empty_one_teach_nothing_wrong(headed):
    hidden = torch.randn(2, 2 * POOLED, headed.whisper.config.d_model)
    too_long, empty = labels_of(headed, "mycket lång", "")
    assert ctc_loss(headed, hidden[:1], too_long[None]).item() == 0
    assert 0 < ctc_loss(headed, hidden[1:], empty[None]).item() < math.inf


def test_texts_with_more_tokens_than_positions_are_counted(headed, tmp_path):
    texts = ("hej", "ja " * 40, "это слишком долго для секунды")  # a second has 25 positions
    shards = Shards(write_shards(tmp_path, {str(n): speech(1.0) for n in range(3)}, texts=texts))
    assert count_too_long(headed, ClipDataset(shards, headed, 448)) == 2


def test_padding_and_prompt_do_not_count(headed):
    hidden = torch.randn(1, 20, headed.whisper.config.d_model)
    alone, beside = labels_of(headed, "hej"), labels_of(headed, "hej", "hej på dig")[:1]
    assert beside.shape[1] > alone.shape[1]
    assert ctc_loss(headed, hidden, alone) == ctc_loss(headed, hidden, beside)


def test_its_gradient_reaches_the_encoder_and_the_head(headed):
    hidden = headed.whisper.model.encoder(torch.randn(1, 80, 100)).last_hidden_state
    ctc_loss(headed, hidden, labels_of(headed, "hej")).backward()
    assert headed.whisper.model.encoder.conv1.weight.grad.abs().sum() > 0
    assert getattr(headed.whisper, HEAD).weight.grad.abs().sum() > 0


def test_a_seed_decides_the_head_and_nothing_else_does(tiny):
    heads = []
    for seed in (1, 1, 2):
        model = load_model(tiny)
        torch.rand(len(heads))  # whatever was drawn before
        before = torch.get_rng_state()
        add_head(model, seed)
        assert torch.equal(before, torch.get_rng_state())
        heads.append(getattr(model.whisper, HEAD).weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_the_finished_model_has_no_head(headed, tiny, tmp_path):
    remove_head(headed)
    save_model(headed, tmp_path / "model")
    names = load_model(tmp_path / "model").whisper.state_dict().keys()
    assert names == load_model(tiny).whisper.state_dict().keys()
