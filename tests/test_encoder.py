import pytest
import torch
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from stages.asr.encoder import allow_any_length, window_frames


@pytest.fixture
def plain(tiny) -> WhisperForConditionalGeneration:
    """The tiny Whisper as transformers alone reads it."""
    model = WhisperForConditionalGeneration.from_pretrained(tiny).eval()
    assert type(model.model.encoder) is WhisperEncoder
    return model


def mels(frames: int) -> torch.Tensor:
    return torch.randn(3, 80, frames, generator=torch.Generator().manual_seed(1))


def test_the_full_window_gives_exactly_what_transformers_gives(plain, model):
    with torch.inference_mode():
        theirs = plain.model.encoder(mels(200)).last_hidden_state
        ours = model.whisper.model.encoder(mels(200)).last_hidden_state
    assert torch.equal(ours, theirs)


def test_dropouts_on_the_full_window_are_transformers_too(plain):
    encoder = plain.train().model.encoder
    encoder.dropout, encoder.layerdrop = 0.2, 0.3
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append([encoder(mels(200)).last_hidden_state for _ in range(6)])
        allow_any_length(plain)
    assert all(torch.equal(theirs, ours) for theirs, ours in zip(*results, strict=True))
    assert not torch.equal(results[0][0], results[0][1])


@pytest.mark.parametrize("frames", [2, 50, 198])
def test_a_short_window_gives_a_position_for_two_frames(model, frames):
    with torch.inference_mode():
        hidden = model.whisper.model.encoder(mels(frames)).last_hidden_state
    assert hidden.shape == (3, frames // 2, 16)
    assert torch.isfinite(hidden).all()


def test_what_a_short_window_hears_depends_on_place_and_sound(model):
    with torch.inference_mode():
        encode = model.whisper.model.encoder
        hidden = encode(mels(100).roll(2, dims=2)).last_hidden_state
        assert not torch.allclose(hidden[:, 1:], encode(mels(100)).last_hidden_state[:, :-1], atol=1e-3)


def test_gradients_are_the_same_with_and_without_checkpointing(model):
    whisper = model.whisper.train()
    labels = torch.arange(12).reshape(3, 4)
    gradients = []
    for _ in range(2):
        whisper.zero_grad()
        whisper(input_features=mels(100), labels=labels).loss.backward()
        gradients.append(whisper.model.encoder.conv1.weight.grad.clone())
        whisper.activation_checkpointing_enable({"use_reentrant": False})
    assert gradients[0].abs().max() > 0
    # Of the largest one, because float32 sums may come in another order.
    assert torch.allclose(*gradients, rtol=0, atol=1e-5 * gradients[0].abs().max().item())


def test_what_is_saved_stays_as_it_was(plain, model, tmp_path):
    keys = plain.state_dict().keys()
    assert model.whisper.state_dict().keys() == keys
    model.whisper.save_pretrained(tmp_path)
    read = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert type(read.model.encoder) is WhisperEncoder
    assert all(torch.equal(read.state_dict()[key], plain.state_dict()[key]) for key in keys)


def test_the_window_is_that_of_the_config(model):
    assert window_frames(model.whisper) == 200
