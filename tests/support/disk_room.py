"""Tests fill caches of pixels on any disk, also one that has little left.

A cache leaves the last bytes of a disk alone. How much that is belongs to the product, and one
test looks at it; whether the machine of the tests has as much is no question of theirs.
"""

from __future__ import annotations

from fcmae.data import cache

KEPT_FREE = cache.KEEP_FREE_BYTES  # what users have


def keep_nothing_free() -> None:
    """Let caches of this process use a disk to its end."""
    cache.KEEP_FREE_BYTES = 0.0
