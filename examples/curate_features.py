"""Near duplicates and outliers among features alone, such as `fcmae embed` writes; or made ones.

    python examples/curate_features.py features.npz --threshold 0.9
    python examples/curate_features.py --made 1000000 --width 320

Of made features, one in a hundred is a near copy of another and one in a thousand far from all;
the script then says how many of these were found, with seconds and the most memory it had.
"""

import argparse
import resource
import time

import numpy as np
import torch

from fcmae.evaluation.copies import candidate_pairs
from fcmae.evaluation.curation import near_duplicate_groups, oddness, outlying
from fcmae.evaluation.neighbours import centred, nearest_neighbours

OF_A_KIND = 1000  # made features in a heap
NEIGHBOURS = 20


def made(number: int, width: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Return features in heaps, [number, width], pairs of near copies among them, and the odd."""
    rng = torch.Generator().manual_seed(0)
    kinds = max(2, number // OF_A_KIND)
    heaps = torch.randn(kinds, width, generator=rng)
    features = torch.randn(number, width, generator=rng)
    for part in features.split(100_000):
        part += 2 * heaps[torch.randint(kinds, (len(part),), generator=rng)]
    order = torch.randperm(number, generator=rng)
    copies, odd = number // 100, number // 1000
    first, second, alone = order[: 2 * copies + odd].split([copies, copies, odd])
    features[second] = features[first] + 0.1 * torch.randn(copies, width, generator=rng)
    features[alone] = 3 * torch.randn(odd, width, generator=rng)
    return features, torch.stack([first, second], dim=1).numpy(), alone.numpy()


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("features", nargs="?", help="an .npz of fcmae embed")
parser.add_argument("--made", type=int, help="how many to make instead")
parser.add_argument("--width", type=int, default=320)
parser.add_argument("--threshold", type=float, default=0.9, help="cosine of near duplicates")
asked = parser.parse_args()
if (asked.features is None) == (asked.made is None):
    parser.error("give either a file of features or --made NUMBER")
known: tuple[np.ndarray, np.ndarray] | None = None
if asked.made is not None:
    vectors, *known = made(asked.made, asked.width)
    names = list(map(str, range(asked.made)))
else:
    with np.load(asked.features) as file:
        vectors, names = torch.from_numpy(file["features"]), file["files"].tolist()

began, worked = time.perf_counter(), time.process_time()
vectors = centred(vectors)
near = nearest_neighbours(vectors, NEIGHBOURS)
pairs = candidate_pairs([near], asked.threshold)
groups = near_duplicate_groups(pairs.places, len(vectors))
odd = outlying(oddness(near))
took, worked = time.perf_counter() - began, time.process_time() - worked
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

for group in groups[:10]:
    print("near duplicates:", ", ".join(names[index] for index in group))
print("oddest:", ", ".join(names[index] for index in odd[:10]) or "none")
print(
    f"{len(vectors):,} features: {sum(map(len, groups)) - len(groups):,} near duplicates, "
    f"{len(odd):,} outliers; {took:.0f} s, {worked:.0f} s of processors, {peak:.1f} GB."
)
if known is not None:
    planted, alone = known
    joined = {(int(a), int(b)) for a, b in pairs.places}
    hits = sum((min(a, b), max(a, b)) in joined for a, b in planted.tolist())
    print(
        f"found {hits:,} of {len(planted):,} copies ({len(joined) - hits:,} other pairs) and "
        f"{len(set(alone.tolist()) & set(odd.tolist())):,} of {len(alone):,} odd ones."
    )
