"""Randomness derived from what a sample is, never from a worker, a rank or a restart."""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def sample_seed(seed: int, *key: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of `key`, in order.

    The same on every machine and in every version: a hash of their text, in which 1 and "1"
    differ and no two keys run together. Names of files count by their bytes, of which Python makes
    other texts under another locale.
    """
    parts = [_text(part) if isinstance(part, str) else int(part) for part in (seed, *key)]
    digest = hashlib.blake2b(ascii(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _text(part: str) -> str:
    return part.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def seeded(value: int) -> Iterator[None]:
    """Seed the global generators of `random`, numpy and torch's CPU inside, restore them after.

    Transforms of torchvision and timm draw from these. CUDA's generators are left alone.
    """
    with _restored():
        random.seed(value)
        np.random.seed(value % 2**32)
        torch.default_generator.manual_seed(value)  # torch.manual_seed would reseed CUDA too
        yield


@contextlib.contextmanager
def torch_seeded(value: int) -> Iterator[None]:
    """Seed torch's global generator on the CPU alone inside, as `seeded` does, and restore it.

    For what draws from no other: numpy's state takes longer to save than a crop to draw.
    """
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(value)
        yield
    finally:
        torch.set_rng_state(before)


@contextlib.contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Restore the global generators after what is inside, also those of GPUs that are in use."""
    has_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    device = torch.cuda.get_rng_state() if has_gpu else None
    try:
        with _restored():
            yield
    finally:
        if device is not None:
            torch.cuda.set_rng_state(device)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
