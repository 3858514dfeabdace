"""One window of speech to text: greedy, batched, at the clip's own length."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicCache

from stages.asr.mel import FRAMES_PER_SECOND, pad_or_trim
from stages.asr.model import SpeechModel
from stages.asr.shards import Shards

GRID = 50  # frames: clips are padded to the next multiple, whatever their neighbours' lengths
TOKENS_PER_SECOND = 30  # more than anyone says, in letters; bounds a transcript by its audio, so that a loop ends
SPARE_TOKENS = 8  # on top of that, for very short clips

Progress = Callable[[Iterable[list[int]], int], Iterable[list[int]]]  # (batches of clips' numbers, how many) -> batches
Check = Callable[[], None]  # raises where the work is not wanted any more


def prompt_tokens(model: SpeechModel) -> list[int]:
    """What every transcript begins with: start, language, task, no timestamps; not part of the text."""
    config = vars(model.whisper.generation_config)  # the class does not declare what Whisper adds to it
    return [
        config["decoder_start_token_id"],
        config["lang_to_id"][f"<|{config['language']}|>"],
        config["task_to_id"][config["task"]],
        config["no_timestamps_token_id"],
    ]


@torch.inference_mode()
def greedy_search(
    model: SpeechModel,
    mels: torch.Tensor,
    max_tokens: int,
    timestamps: bool = False,
    probabilities: list[torch.Tensor] | None = None,
    check: Check = lambda: None,
) -> list[list[int]]:
    """The likeliest next token until the end token: (batch, n_mels, n_frames) float32 -> token ids of each text.

    Suppresses what the model's generation_config names, as ``generate`` does. Ends after max_tokens, or the
    generation_config's max_length with the prompt, at the latest. timestamps: a text begins and ends with one, as in
    Whisper's own decoding. probabilities: takes each step's, (batch,) float32, of the tokens that were chosen. check:
    called before each token, and before each of the encoder's layers.
    """
    whisper, config = model.whisper, model.whisper.generation_config
    start = prompt_tokens(model)
    first_stamp = start[-1] + 1
    if timestamps:
        start.pop()
    encoded = whisper.model.encoder(mels.to(whisper.device, whisper.dtype), check=check).last_hidden_state
    tokens = torch.tensor([start] * len(mels), device=whisper.device)
    never = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=whisper.device)
    not_first = torch.tensor(config.begin_suppress_tokens or [], dtype=torch.long, device=whisper.device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    stamps = torch.zeros(len(mels), dtype=torch.long, device=whisper.device)  # of each text so far
    ended = torch.zeros(len(mels), dtype=torch.bool, device=whisper.device)
    texts = []
    for step in range(min(max_tokens, config.max_length - len(start))):
        check()
        hidden = whisper.model.decoder(
            input_ids=tokens, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = whisper.proj_out(hidden[:, -1])
        logits[:, never] = -torch.inf
        if step == 0:
            logits[:, not_first] = -torch.inf
            if timestamps:
                logits[:, :first_stamp] = -torch.inf
        best = logits.argmax(-1)
        if timestamps:
            unfinished = (best == config.eos_token_id) & (stamps % 2 == 1)
            best = torch.where(unfinished, logits[:, first_stamp:].argmax(-1) + first_stamp, best)
            stamps += best >= first_stamp
        if probabilities is not None:
            probabilities.append(logits.float().softmax(-1).gather(1, best[:, None])[:, 0])
        tokens = best.masked_fill(ended, config.eos_token_id)[:, None]
        ended |= tokens[:, 0] == config.eos_token_id
        if ended.all():
            break
        texts.append(tokens[:, 0])
    rows = torch.stack(texts, dim=1).tolist() if texts else [[] for _ in mels]
    return [row[: row.index(config.eos_token_id)] if config.eos_token_id in row else row for row in rows]


def on_grid(n_frames: int) -> int:
    """A clip's frames, up to the next multiple of the grid."""
    return -(-n_frames // GRID) * GRID


def context_frames(model: SpeechModel, n_frames: int) -> int:
    """Frames that the encoder is to see of a clip of n_frames: its own up to the grid, and a margin, or the window."""
    return min(on_grid(n_frames) + model.margin, model.window) if model.context == "clip" else model.window


def token_limit(n_frames: int) -> int:
    """The most tokens that a clip of n_frames, up to the grid, can hold."""
    return int(on_grid(n_frames) / FRAMES_PER_SECOND * TOKENS_PER_SECOND) + SPARE_TOKENS


def batch_by_length(lengths: Iterable[int], batch_size: int) -> Iterator[list[int]]:
    """Clips, given their frames, as batches of their numbers: of one length on the grid each, short ones first."""
    numbers_of = defaultdict(list)
    for number, n_frames in enumerate(lengths):
        numbers_of[on_grid(n_frames)].append(number)
    for _, numbers in sorted(numbers_of.items()):
        yield from (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))


def decode(
    model: SpeechModel, shards: Shards, batch_size: int, progress: Progress = lambda batches, total: batches
) -> list[str]:
    """Transcribe every clip of some shards, in their order, as ``decode_mels`` does."""
    return decode_mels(model, [entry.n_frames for entry in shards.entries], shards.mel, batch_size, progress)


def decode_mels(
    model: SpeechModel,
    lengths: Sequence[int],
    read: Callable[[int], np.ndarray],
    batch_size: int,
    progress: Progress = lambda batches, total: batches,
    limit: Callable[[int], int] = token_limit,
) -> list[str]:
    """Transcribe clips, given their frames and a function from a clip's number to its features, in their order.

    A batch holds clips of one length on the grid, so that a clip is padded, and bounded in tokens, by its own length
    alone. read: gives (n_mels, n_frames) float32 scaled log-mel. progress: wraps the batches, given their number.
    limit: the most tokens of a clip of so many frames.
    """
    batches = list(batch_by_length(lengths, batch_size))
    texts: dict[int, str] = {}
    for numbers in progress(batches, len(batches)):
        n_frames = lengths[numbers[0]]  # the others' too, on the grid
        context = context_frames(model, n_frames)
        mels = torch.stack([torch.from_numpy(pad_or_trim(read(number), context)) for number in numbers])
        rows = greedy_search(model, mels, limit(n_frames))
        texts |= zip(numbers, model.tokenizer.batch_decode(rows, skip_special_tokens=True), strict=True)
    return [" ".join(texts[number].split()) for number in range(len(lengths))]
