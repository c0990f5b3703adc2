"""Evaluation clips in the pool: found by their bytes, and by their looks.

Looks are compared by a colour difference hash of the frames as the image tokenizer decodes them,
so no video is read again, and a clip that was encoded anew is found, too. Scenes of one world
share layout and colours, which the usual 8x8 hash of the brightness cannot tell apart: this one is
finer, keeps the colours apart, and leaves flat areas out, where the sign of a difference is noise.
Few bits are set, so two hashes are compared by the share of their set bits that differ.

B, P frames, L codes a frame, H = W frame pixels, S cells a side of the hash, U words a hash.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.tables import codes_matrix

Hashes = NDArray[np.uint64]
Codes = NDArray[np.int64]

SIDE = 16
"""Cells a side, S."""
MIN_STEP = 16.0
"""Least difference between neighbouring cells that is an edge, of 255."""
MAX_DIFFERENCE = 0.25
"""Frames look alike when fewer bits differ than this share of the bits set in both. In the default
run 5 of 1,000 held-out pairs show, by chance, a scene and action that the pool shows, too; three
of them have a pool pair this near, and no other pair has. Of 80 clips, encoded anew in a worse
quality or a smaller size, 98 % are this near to themselves; cut at the edges or darkened, 90 %."""
MOST_LOOKALIKES = 0.05
"""Share of the held-out pairs that look like a pool pair by chance, from which on looks prove
nothing."""
_PIXELS_A_BATCH = 1 << 20
_PAIRS_A_CHUNK = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """Held-out pairs that the pool holds."""

    num_heldout: int
    by_digest: int
    """Pairs of a clip that the pool holds byte for byte."""
    by_hash: int
    """Pairs whose two frames both look like those of one pool pair."""
    either: int
    lookalikes: int = 0
    """Held-out pairs that look like a pool pair by chance: see `num_lookalikes`."""

    @property
    def looks_tell(self) -> bool:
        """False where a fixed camera makes clips alike that have nothing to do with each other."""
        return self.lookalikes <= MOST_LOOKALIKES * self.num_heldout


def count_leakage(
    same_B: NDArray[np.bool_], alike_B: NDArray[np.bool_], lookalikes: int = 0
) -> Leakage:
    """Counts of the pairs that `leaked_pairs` found."""
    return Leakage(
        num_heldout=len(same_B),
        by_digest=int(same_B.sum()),
        by_hash=int(alike_B.sum()),
        either=int((same_B | alike_B).sum()),
        lookalikes=lookalikes,
    )


def num_lookalikes(pairs: tuple[Hashes, Hashes], clips: Sequence[str], num_pool: int) -> int:
    """Held-out pairs that look like one of so many others by chance.

    Counted among themselves: half of the clips are compared with the others. A pool holds more
    pairs than a half does, and as many times more of them look like a held-out one.
    """
    half_B = np.unique(clips, return_inverse=True)[1] % 2 == 1
    halves = [(pairs[0][rows], pairs[1][rows]) for rows in (half_B, ~half_B)]
    among = sum(int(near_pairs(one, other).sum()) for one, other in (halves, halves[::-1]))
    return min(len(half_B), round(among * num_pool / max(1, len(half_B) / 2)))


def leaked_pairs(
    pool: pa.Table, heldout: pa.Table, images: ImageTokenizer
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare every held-out pair with every pool pair, in memory.

    Args:
        pool: with the columns ``clip_sha256``, ``source_codes`` and ``target_codes``.
        heldout: the same columns.
        images: decodes the codes of both.

    Returns:
        Per held-out pair, bool [B] each: its clip is in the pool byte for byte; it looks like a
        pair of the pool.
    """
    clips = set(pool["clip_sha256"].to_pylist())
    same_B = np.array([clip in clips for clip in heldout["clip_sha256"].to_pylist()], dtype=bool)
    return same_B, near_pairs(pair_hashes(heldout, images), pair_hashes(pool, images))


def near_pairs(pairs: tuple[Hashes, Hashes], others: tuple[Hashes, Hashes]) -> NDArray[np.bool_]:
    """Pairs that look like one of the others in both frames.

    Args:
        pairs: hashes [B, U] of the source and of the target frames.
        others: hashes [P, U] of the same.

    Returns:
        bool [B].
    """
    (source_BU, target_BU), (source_PU, target_PU) = pairs, others
    set_B, set_P = _bits(source_BU), _bits(source_PU)
    found_B = np.zeros(len(source_BU), dtype=bool)
    step = max(1, _PAIRS_A_CHUNK // max(1, len(source_PU)))
    for start in range(0, len(source_BU), step):
        part = slice(start, start + step)
        differ_BP = _distances(source_BU[part], source_PU)
        # Less, not at most: frames without any edge look like nothing, not like each other.
        rows, near = np.nonzero(differ_BP < MAX_DIFFERENCE * (set_B[part, None] + set_P))
        # Few sources are near, so the targets are compared only where they are.
        ours, theirs = target_BU[start + rows], target_PU[near]
        alike = _bits(ours ^ theirs) < MAX_DIFFERENCE * (_bits(ours) + _bits(theirs))
        found_B[start + rows[alike]] = True
    return found_B


def perceptual_hashes(frames_BHW3: NDArray[np.uint8]) -> Hashes:
    """Packed hashes [B, U]: per colour and direction, where a cell is brighter, and where darker.

    Frames are averaged down to S x S cells (S + 1 along the direction of the differences).
    """
    frames = frames_BHW3.astype(np.float32)
    fine, coarse = (_averaging(size, frames.shape[1]) for size in (SIDE + 1, SIDE))
    across = np.diff(_shrink(frames, coarse, fine), axis=2)
    down = np.diff(_shrink(frames, fine, coarse), axis=1)
    edges = np.concatenate(
        [across > MIN_STEP, across < -MIN_STEP, down > MIN_STEP, down < -MIN_STEP], 3
    )
    bytes_BN = np.packbits(edges.reshape(len(frames), -1), axis=1)
    return bytes_BN.view(np.uint64)


def hash_codes(codes_BL: Codes, images: ImageTokenizer) -> Hashes:
    """Hashes [B, U] of the frames that codes decode to; each distinct frame is decoded once."""
    distinct, rows = np.unique(codes_BL, axis=0, return_inverse=True)
    step = max(1, _PIXELS_A_BATCH // images.frame_px**2)
    parts = [
        perceptual_hashes(images.decode(distinct[start : start + step]))
        for start in range(0, len(distinct), step)
    ]
    return np.concatenate(parts)[rows.reshape(-1)]


def pair_hashes(table: pa.Table, images: ImageTokenizer) -> tuple[Hashes, Hashes]:
    """Hashes [B, U] of the source and of the target frames of pairs."""
    source_BL, target_BL = (codes_matrix(table, f"{end}_codes") for end in ("source", "target"))
    both = hash_codes(np.concatenate([source_BL, target_BL]), images)
    return both[: len(source_BL)], both[len(source_BL) :]


def _bits(hashes_BU: Hashes) -> NDArray[np.float32]:
    """Number of set bits [B]."""
    counts: NDArray[np.float32] = np.bitwise_count(hashes_BU).sum(axis=1, dtype=np.float32)
    return counts


def _distances(hashes_BU: Hashes, others_PU: Hashes) -> NDArray[np.uint16]:
    """Hamming distances [B, P]; word by word, so that nothing larger than the result is held."""
    distances = np.zeros((len(hashes_BU), len(others_PU)), dtype=np.uint16)
    for ours_B, theirs_P in zip(hashes_BU.T, others_PU.T, strict=True):
        distances += np.bitwise_count(ours_B[:, None] ^ theirs_P)
    return distances


def _averaging(num_cells: int, num_pixels: int) -> NDArray[np.float32]:
    """Matrix [num_cells, num_pixels] that averages pixels into equal cells."""
    edges = np.linspace(0, num_pixels, num_cells + 1)
    starts = np.arange(num_pixels)
    low = np.maximum(edges[:-1, None], starts)
    high = np.minimum(edges[1:, None], starts + 1)
    matrix: NDArray[np.float64] = np.clip(high - low, 0, None) * num_cells / num_pixels
    return matrix.astype(np.float32)


def _shrink(
    frames_BHW3: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float32]:
    shrunk: NDArray[np.float32] = np.einsum(
        "ih,bhwc,jw->bijc", rows, frames_BHW3, columns, optimize=True
    )
    return shrunk
