"""Images that belong together (one patient, one slide, one serial number) and are never parted."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from fcmae.errors import ConfigError
from fcmae.randomness import sample_seed


def group_numbers(paths: Iterable[str], pattern: str, where: str = "data.group") -> np.ndarray:
    """Return the number of each path's group, int64 [N].

    The group is what the pattern's first pair of parentheses matches anywhere in the path, or the
    whole match without parentheses. A path that does not match is a group of its own.

    Raises:
        ConfigError: no regular expression, or one that matches no path, or parts no two of them.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: {pattern!r} is no regular expression ({error}).") from error
    known: dict[str, int] = {}
    numbers: list[int] = []
    num_matched = 0
    for path in paths:
        match = expression.search(path)
        if match is None:
            numbers.append(-1 - len(numbers))  # unlike all others
            continue
        num_matched += 1
        name = match[1] if expression.groups else match[0]
        numbers.append(known.setdefault(name or "", len(known)))
    if not num_matched:
        example = next(iter(paths), "")
        raise ConfigError(
            f"{where}: {pattern!r} matches no path, such as {example!r}; expected a regular "
            "expression whose first group names what belongs together, such as '(patient\\d+)'."
        )
    if len(known) == 1 and num_matched == len(numbers):
        raise ConfigError(
            f"{where}: {pattern!r} puts all {num_matched} images into one group, "
            f"{next(iter(known))!r}; expected two groups or more."
        )
    return np.unique(np.array(numbers, np.int64), return_inverse=True)[1].astype(np.int64)


def draw_groups(
    groups: np.ndarray, wanted: Sequence[tuple[np.ndarray, int]], seed: int, *key: str
) -> np.ndarray:
    """Return the images of whole groups that come close to what is wanted, sorted indices.

    Groups are taken in random order as long as each brings the counts nearer to those wanted; a
    set of which none is held then takes its smallest group. No set is emptied.

    Args:
        groups: number of each image's group.
        wanted: (is in the set [N] bool, images wanted of it), such as one set per class.
        seed, key: decide the order.
    """
    num_groups = int(groups.max()) + 1
    sizes = np.stack(
        [np.bincount(groups[is_in], minlength=num_groups) for is_in, _ in wanted], axis=1
    )
    target = np.array([count for _, count in wanted])
    totals = sizes.sum(axis=0)
    rng = torch.Generator().manual_seed(sample_seed(seed, *key))
    order = torch.randperm(num_groups, generator=rng).tolist()
    held = np.zeros_like(target)
    chosen = np.zeros(num_groups, bool)

    def leaves_some(group: int) -> bool:
        return bool(((held + sizes[group] < totals) | (sizes[group] == 0)).all())

    for group in order:
        nearer = np.abs(target - held - sizes[group]).sum() < np.abs(target - held).sum()
        if nearer and leaves_some(group):
            held, chosen[group] = held + sizes[group], True
    for place in np.flatnonzero((held == 0) & (target > 0)):
        free = [g for g in order if not chosen[g] and sizes[g, place] and leaves_some(g)]
        if free and held[place] == 0:
            smallest = min(free, key=lambda group: sizes[group, place])
            held, chosen[smallest] = held + sizes[smallest], True
    return np.flatnonzero(chosen[groups])
