"""k nearest neighbours by cosine similarity: what frozen features know without any training."""

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_predict(
    train_vectors: Tensor,
    train_labels: Tensor,
    test_vectors: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk_images: int = 1024,
) -> Tensor:
    """Return the class of each test vector by weighted vote of its nearest training vectors.

    Vectors are taken relative to the mean of the training ones: no norm has centred them, and
    seen from far outside all of them point the same way. A neighbour of cosine similarity s then
    votes for its class with weight exp(s / temperature).
    Source: Wu et al. 2018 (arXiv 1805.01978), section 3.4; k as in DINO.
    Deviation: centred, see `test_knn_does_not_depend_on_where_the_origin_lies`.

    Args:
        train_vectors: [M, D].
        train_labels: LongTensor [M], 0 and up.
        test_vectors: [N, D].
        k: neighbours that vote; all of them when there are fewer.
        temperature: how much more the nearest count.
        chunk_images: test vectors at a time, which bounds the memory.

    Returns:
        LongTensor [N]; the lower class wins a tie.
    """
    centre = train_vectors.double().mean(dim=0)
    train, test = (
        F.normalize((vectors - centre).float(), dim=1) for vectors in (train_vectors, test_vectors)
    )
    num_classes = int(train_labels.max()) + 1
    predictions = []
    for chunk in test.split(chunk_images):
        similarity, neighbours = (chunk @ train.T).topk(min(k, len(train)), dim=1)
        # Less the largest, which changes no vote's share: exp(1 / 0.07) nears float32's limits.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(chunk), num_classes)
        votes.scatter_add_(1, train_labels[neighbours], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)
