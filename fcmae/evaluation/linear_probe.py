"""A linear classifier on frozen features: logistic regression by scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from torch import Tensor

# Inverse strengths of the L2 penalty that are tried. Features are standardised, so that one range
# serves all widths.
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
VALIDATION_EVERY = 4  # each fourth training image of a class chooses the penalty


def linear_probe_predict(
    train_vectors: Tensor, train_labels: Tensor, test_vectors: Tensor
) -> Tensor:
    """Return the class of each test vector, LongTensor [N], by logistic regression.

    Features are standardised by the training part. The penalty is the one with the best balanced
    accuracy on every fourth training image of each class, the strongest of equals; then all
    training images are fitted. Classes weigh the same however many images they have. Nothing is
    random.

    Args:
        train_vectors: [M, D].
        train_labels: LongTensor [M], of two classes at least.
        test_vectors: [N, D].
    """
    mean = train_vectors.double().mean(dim=0)
    deviation = train_vectors.double().std(dim=0)
    deviation = torch.where(deviation > 1e-12, deviation, 1.0)  # a constant says nothing
    train = ((train_vectors.double() - mean) / deviation).numpy()
    test = ((test_vectors.double() - mean) / deviation).numpy()
    labels = train_labels.numpy()
    penalty = _choose_penalty(train, labels)
    return torch.from_numpy(_fit(train, labels, penalty).predict(test)).long()


def _choose_penalty(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return the inverse penalty that is best on the validation part of the training images."""
    is_validation = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        is_validation[members[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]] = True
    if not is_validation.any():
        return INVERSE_PENALTIES[1]
    fitted, held_out = ~is_validation, is_validation

    def score(penalty: float) -> float:
        model = _fit(vectors[fitted], labels[fitted], penalty)
        return balanced_accuracy(model.predict(vectors[held_out]), labels[held_out])

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
