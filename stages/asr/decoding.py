"""One window of speech to text: greedy, batched, at the clip's own length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch

from stages.asr.decoder import Decoding
from stages.asr.mel import FRAMES_PER_SECOND, pad_or_trim
from stages.asr.model import SpeechModel
from stages.asr.shards import Shards

GRID = 50  # frames: clips are padded to the next multiple, whatever their neighbours' lengths
# More than anyone says, in letters of up to three bytes, each of which may be a token: Tamil read aloud has 42 a
# second, Swedish 16. Bounds a transcript by its audio, so that a loop ends.
TOKENS_PER_SECOND = 60
SPARE_TOKENS = 8  # on top of that, for very short clips
MOST_CLIPS = 4  # times as many as on the full window are decoded together, where they are short
UNASKED = 8  # tokens of an accelerator, which works ahead: to ask it whether texts have ended is to wait for it
WORTH_COPYING = 0.75  # of the texts are left: what they have heard is copied, and the others' steps are saved

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
    mels: Sequence[torch.Tensor] | torch.Tensor,
    max_tokens: int | Sequence[int],
    timestamps: bool = False,
    probabilities: list[torch.Tensor] | None = None,
    check: Check = lambda: None,
) -> list[list[int]]:
    """The likeliest next token until the end token: clips of (n_mels, n_frames) float32 -> token ids of each text.

    Clips of one length that stand together are encoded together. Suppresses what the model's generation_config names,
    as ``generate`` does. A text ends after max_tokens, of all or of each, or the generation_config's max_length with
    the prompt, at the latest. timestamps: a text begins and ends with one, as in Whisper's own decoding.
    probabilities: takes each step's, (n_clips,) float32, of the tokens that were chosen, 1 after a text's end. check:
    called before each token, and before each of the encoder's layers.
    """
    whisper, config = model.whisper, model.whisper.generation_config
    device, end = whisper.device, config.eos_token_id
    start = prompt_tokens(model)
    first_stamp = start[-1] + 1
    if timestamps:
        start.pop()
    never = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=device)
    not_first = torch.tensor(config.begin_suppress_tokens or [], dtype=torch.long, device=device)
    lengths = [list(clips) for _, clips in groupby(mels, key=lambda mel: mel.shape[1])]
    encode = whisper.model.encoder
    windows = [torch.stack(clips).to(device, whisper.dtype) for clips in lengths]
    encoded = [encode(batch, check=check).last_hidden_state for batch in windows]
    decoding = Decoding(whisper.model.decoder, encoded)
    del windows, encoded
    limits = torch.tensor([max_tokens] * len(mels) if isinstance(max_tokens, int) else max_tokens, device=device)
    limits = limits.clamp(0, max(config.max_length - len(start), 0))
    texts = torch.full((len(mels), int(limits.max())), end, device=device)
    tokens = torch.tensor([start] * len(mels), device=device)
    rows = torch.arange(len(mels), device=device)  # of texts: those that are still decoded, as are the next two
    stamps = torch.zeros_like(rows)  # of each so far
    ended = limits == 0
    for step in range(texts.shape[1]):
        check()
        logits = whisper.proj_out(decoding.step(tokens))
        logits[:, never] = -torch.inf
        if step == 0:
            logits[:, not_first] = -torch.inf
            if timestamps:
                logits[:, :first_stamp] = -torch.inf
        best = logits.argmax(-1)
        if timestamps:
            unfinished = (best == end) & (stamps % 2 == 1)
            best = torch.where(unfinished, logits[:, first_stamp:].argmax(-1) + first_stamp, best)
            stamps += best >= first_stamp
        if probabilities is not None:
            chosen = logits.float().softmax(-1).gather(1, best[:, None])[:, 0].masked_fill(ended, 1)
            probabilities.append(torch.ones(len(mels), device=device).index_copy(0, rows, chosen))
        texts[rows, step] = best = best.masked_fill(ended, end)
        ended |= (best == end) | (limits[rows] == step + 1)
        tokens = best[:, None]
        if (step + 1) % ask_every(device):
            continue
        left = (~ended).nonzero()[:, 0]
        if not len(left):
            break
        if len(left) <= WORTH_COPYING * len(rows):
            decoding.keep(left)
            rows, stamps, ended, tokens = rows[left], stamps[left], ended[left], tokens[left]
    return [row[: row.index(end)] if end in row else row for row in texts.tolist()]


def ask_every(device: torch.device) -> int:
    """After how many tokens to see which texts have ended."""
    return 1 if device.type == "cpu" else UNASKED


def on_grid(n_frames: int) -> int:
    """A clip's frames, up to the next multiple of the grid."""
    return -(-n_frames // GRID) * GRID


def context_frames(model: SpeechModel, n_frames: int) -> int:
    """Frames that the encoder is to see of a clip of n_frames: its own up to the grid, and a margin, or the window."""
    return min(on_grid(n_frames) + model.margin, model.window) if model.context == "clip" else model.window


def token_limit(n_frames: int) -> int:
    """The most tokens that a clip of n_frames, up to the grid, can hold."""
    return int(on_grid(n_frames) / FRAMES_PER_SECOND * TOKENS_PER_SECOND) + SPARE_TOKENS


def batch_by_length(model: SpeechModel, lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Clips, given their frames, as batches of their numbers: by their length on the grid, short ones first.

    batch_size: clips on the full window; of those that the encoder sees less of, as many as have no more frames.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: on_grid(lengths[number])):
        room = batch_size * model.window // context_frames(model, lengths[number])
        if len(batch) >= min(room, MOST_CLIPS * batch_size):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def decode(
    model: SpeechModel, shards: Shards, batch_size: int, progress: Progress = lambda batches, total: batches
) -> list[str]:
    """Transcribe every clip of some shards, in their order, as ``decode_mels`` does."""
    lengths = [entry.n_frames for entry in shards.entries]
    return decode_mels(model, lengths, shards.mel, batch_size, progress, each=shards.folder.map)


def decode_mels(
    model: SpeechModel,
    lengths: Sequence[int],
    read: Callable[[int], np.ndarray],
    batch_size: int,
    progress: Progress = lambda batches, total: batches,
    limit: Callable[[int], int] = token_limit,
    each: Callable[[Callable[[int], np.ndarray], list[int]], Iterable[np.ndarray]] = map,
) -> list[str]:
    """Transcribe clips, given their frames and a function from a clip's number to its features, in their order.

    A clip is padded, and bounded in tokens, by its own length on the grid alone, whatever its batch. read: gives
    (n_mels, n_frames) float32 scaled log-mel. progress: wraps the batches, given their number. limit: the most tokens
    of a clip of so many frames. each: calls read for a batch's clips, in their order.
    """
    batches = list(batch_by_length(model, lengths, batch_size))
    texts: dict[int, str] = {}
    for numbers in progress(batches, len(batches)):
        mels = [
            torch.from_numpy(pad_or_trim(mel, context_frames(model, lengths[number])))
            for number, mel in zip(numbers, each(read, numbers), strict=True)
        ]
        rows = greedy_search(model, mels, [limit(lengths[number]) for number in numbers])
        texts |= zip(numbers, model.tokenizer.batch_decode(rows, skip_special_tokens=True), strict=True)
    return [" ".join(texts[number].split()) for number in range(len(lengths))]
