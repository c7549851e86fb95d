"""Counter-based randomness: what is drawn depends on (seed, step, index, purpose) alone.

Nothing in mim3d draws from a global generator. A stream is named by four things: the seed of the
run, the step, the index of the sample in the global batch of that step, and the purpose (`"crop"`,
`"mask"`). The same four give the same numbers in any process, worker, feed or order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def philox(*parts: int | str) -> np.random.Philox:
    """A Philox bit generator keyed by any sequence of integers and words."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator keyed by any sequence of integers and words."""
    return np.random.Generator(philox(*parts))


@dataclass(frozen=True)
class RandomStream:
    """The randomness of one step of one run."""

    seed: int
    step: int

    def generator(self, index: int, purpose: str) -> np.random.Generator:
        """The generator of one sample for one purpose."""
        return generator(self.seed, self.step, index, purpose)

    def keys(self, indices: Iterable[int], purpose: str) -> NDArray[np.int64]:
        """One 64-bit key a sample; `tokens.noise` turns them into numbers on any device.

        Args:
            indices: places of the samples in the global batch, `b`.
            purpose: what the numbers are for.

        Returns:
            `b`, int64, all bits random.
        """
        raw = [philox(self.seed, self.step, int(i), purpose).random_raw() for i in indices]
        return np.array(raw, dtype=np.uint64).view(np.int64)
