"""The endless index stream: which sample comes when depends on (seed, global batch size, step) alone.

Samples are counted across the whole run. Update t uses the numbers [t G, (t + 1) G) of a global batch of
size G; micro-batches and within them ranks take contiguous shares of it, so their concatenation is that
batch again.
"""

import hashlib
import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of `parts`, the same in every process and Python version."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


@lru_cache(maxsize=4)  # source and target, each around an epoch's end
def _permutation(seed: int, stream: str, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng(derive_seed(seed, stream, "order", epoch)).permutation(size)


def sample_index(seed: int, stream: str, n: int, size: int) -> int:
    """Which of `size` items is number `n` of the stream `stream`: each epoch is a fresh permutation."""
    epoch, position = divmod(n, size)
    return int(_permutation(seed, stream, epoch, size)[position])


BLOCK = 1000  # samples in which every entry of a mixed stream has its share


@lru_cache(maxsize=4)
def _block(seed: int, stream: str, number: int, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Which entry each sample of a block is of, how many of that entry came before it in the block, and how many
    samples of a block each entry has."""
    exact = np.array(weights) * (BLOCK / sum(weights))
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]] += 1  # the largest remainders
    ordered = np.repeat(np.arange(len(weights)), counts)
    order = np.random.default_rng(derive_seed(seed, stream, "mix", number)).permutation(ordered)
    before = np.empty(BLOCK, int)
    for entry, count in enumerate(counts):
        before[order == entry] = np.arange(count)
    return order, before, counts.tolist()


def mixed_index(seed: int, stream: str, n: int, weights: tuple[float, ...]) -> tuple[int, int]:
    """Which entry sample number `n` of a mixed stream is of, and its number among that entry's samples.

    Each `BLOCK` samples hold the entries in proportion to their weights, in an order of their own.
    """
    number, place = divmod(n, BLOCK)
    order, before, counts = _block(seed, stream, number, weights)
    entry = int(order[place])
    return entry, number * counts[entry] + int(before[place])


def few_of(size: int, keep: int, draw: int) -> list[int]:
    """`keep` of `size` places in ascending order: the first of a permutation that `draw` alone decides."""
    return sorted(np.random.default_rng(derive_seed("labels", draw, size)).permutation(size)[:keep].tolist())


class GlobalBatches(Sampler[list[int]]):
    """Endless batch sampler: lists of sample numbers for one rank, `accumulate` micro-batches per update.

    Args:
        batch_size: samples per update over all ranks and micro-batches; a multiple of `world * accumulate`.
        start_step: the first update to yield.
    """

    def __init__(
        self, batch_size: int, start_step: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> None:
        self.batch_size, self.start_step = batch_size, start_step
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.micro = batch_size // (world * accumulate)

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start_step):
            for number in range(self.accumulate):
                start = step * self.batch_size + (number * self.world + self.rank) * self.micro
                yield list(range(start, start + self.micro))
