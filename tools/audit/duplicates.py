"""Recordings that are there twice: the same one encoded anew, shifted or made louder, found among many by landmarks."""

from collections.abc import Sequence

import numpy as np

MOST_ALIKE = 40  # clips with one landmark: a commoner one tells nothing
FEWEST = 3  # landmarks that two clips share at one shift, and as a share of those of the shorter one's
SHARE = 0.08
SHIFT_FRAMES = 2  # within which shifts are one
PIECE = 800  # samples, 50 ms
LOUD = 1e-3  # of the loudest pieces' energy: what is softer is noise, or another encoder's
ALIKE = 0.6  # correlation of two pieces that are one: a lossy encoding leaves no more of a soft s or f
SAME = 0.9  # the share of two recordings' pieces that are one: of others with a word in common three quarters
SHORTER = 0.75  # of the longer one's speech, at least: a word of a sentence is not the sentence


def find_candidates(landmarks: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of clips, by number, that share landmarks in one order: (n, 2) int32 each, hashes and frames.

    The work grows with the number of landmarks, not with the number of pairs of clips.
    """
    if not sum(map(len, landmarks)):
        return []
    clips = np.repeat(np.arange(len(landmarks)), [len(one) for one in landmarks])
    hashes, frames = np.concatenate(landmarks).T
    order = np.lexsort((clips, hashes))
    clips, hashes, frames = clips[order], hashes[order], frames[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
    sizes = np.diff(np.r_[starts, len(hashes)])
    rare = np.repeat(sizes <= MOST_ALIKE, sizes)
    clips, hashes, frames = clips[rare], hashes[rare], frames[rare]
    found = []
    for lag in range(1, MOST_ALIKE):
        same = (hashes[lag:] == hashes[:-lag]) & (clips[lag:] != clips[:-lag])
        if not (hashes[lag:] == hashes[:-lag]).any():
            break
        shift = (frames[lag:] - frames[:-lag])[same]
        for around in (shift, shift + SHIFT_FRAMES // 2):  # whichever of two neighbours falls into one
            steps = 2 * (around // SHIFT_FRAMES) + (around is not shift)
            found.append(np.stack([clips[:-lag][same], clips[lag:][same], steps], axis=1))
    if not found:
        return []
    pairs, counts = np.unique(np.concatenate(found), axis=0, return_counts=True)
    lengths = np.bincount(clips, minlength=len(landmarks))
    fewer = np.minimum(lengths[pairs[:, 0]], lengths[pairs[:, 1]])
    enough = pairs[counts >= np.maximum(FEWEST, SHARE * fewer)][:, :2]
    return [(int(one), int(other)) for one, other in np.unique(enough, axis=0)]


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The share of two recordings' speech, (n_samples,) each at 16 kHz, that is one at the shift where they fit best.

    Judged piece by piece, so that a loud word which both have does not stand for all of them.
    """
    size = 1 << (len(one) + len(other) - 1).bit_length()
    products = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size)), size)
    shift = int(np.abs(products).argmax())
    shift -= size if shift > size // 2 else 0  # of one against the other: circular, so that the last ones are negative
    start, end = min(0, shift), max(len(one), len(other) + shift)
    aligned = np.zeros((2, -(-(end - start) // PIECE) * PIECE))
    aligned[0, -start : len(one) - start] = one
    aligned[1, shift - start : shift - start + len(other)] = other
    pieces = aligned.reshape(2, -1, PIECE)
    energy = np.sum(pieces**2, axis=2)
    loud = np.any(energy > np.percentile(energy, 95, axis=1, keepdims=True) * LOUD, axis=0)
    alike = np.abs(np.sum(pieces[0] * pieces[1], axis=1)) > ALIKE * np.sqrt(energy[0] * energy[1])
    return float(np.mean(alike[loud] & (energy.min(axis=0)[loud] > 0))) if loud.any() else 0.0
