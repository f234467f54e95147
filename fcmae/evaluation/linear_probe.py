"""A linear classifier on frozen features: logistic regression by scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from torch import Tensor

# Inverse strengths of the L2 penalty that are tried, strongest first. Features are standardised,
# so that one range serves all widths.
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
NUM_FOLDS = 4


def linear_probe_predict(
    train_vectors: Tensor, train_labels: Tensor, test_vectors: Tensor
) -> Tensor:
    """Return the class of each test vector, LongTensor [N], by logistic regression.

    Features are standardised by the training part. The penalty is chosen inside the training
    part, by the balanced accuracy of four-fold cross-validation, the strongest of equals: with
    some 50 images, a single fold's choice moved scores by ten points between draws. Classes weigh
    the same however many images they have. Nothing is random.

    Args:
        train_vectors: [M, D].
        train_labels: LongTensor [M], of two classes at least, in an order without meaning.
        test_vectors: [N, D].
    """
    mean = train_vectors.double().mean(dim=0)
    deviation = train_vectors.double().std(dim=0)
    deviation = torch.where(deviation > 1e-12, deviation, 1.0)  # a constant says nothing
    train = (train_vectors.double() - mean) / deviation
    test = (test_vectors.double() - mean) / deviation
    # The weights of a regression with an L2 penalty lie in the span of its training vectors: in
    # coordinates of that span the result is the same and wide features cost no more than narrow.
    span = torch.linalg.svd(train, full_matrices=False).Vh.T  # [D, min(M, D)]
    train_array, labels = (train @ span).numpy(), train_labels.numpy()
    model = _fit(train_array, labels, _choose_penalty(train_array, labels))
    return torch.from_numpy(model.predict((test @ span).numpy())).long()


def _choose_penalty(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return the inverse penalty that is best in cross-validation over the training images."""
    fold = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        fold[members] = np.arange(len(members)) % NUM_FOLDS
    # A fold that holds every image of a class leaves none to learn from.
    folds = [
        number
        for number in range(NUM_FOLDS)
        if (fold == number).any() and len(np.unique(labels[fold != number])) > 1
    ]
    if not folds:
        return 1.0
    is_scored = np.isin(fold, folds)

    def score(penalty: float) -> float:
        predictions = np.empty_like(labels)
        for number in folds:
            held_out = fold == number
            model = _fit(vectors[~held_out], labels[~held_out], penalty)
            predictions[held_out] = model.predict(vectors[held_out])
        return balanced_accuracy(predictions[is_scored], labels[is_scored])

    return max(INVERSE_PENALTIES, key=score)  # the first, which is the strongest, of equals


def _fit(vectors: np.ndarray, labels: np.ndarray, penalty: float) -> LogisticRegression:
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=500)
    with warnings.catch_warnings():
        # Stopped early is a slightly stronger penalty, which is as good.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(vectors, labels)


def balanced_accuracy(predictions: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> float:
    """Return the mean over the classes in `labels` of the share of their images that is right."""
    classes = np.unique(np.asarray(labels))
    recalls = recall_score(labels, predictions, labels=classes, average=None, zero_division=0)
    return float(np.mean(recalls))
