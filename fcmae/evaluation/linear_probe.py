"""A linear classifier on frozen features: logistic regression by scikit-learn.

scikit-learn is imported where it computes: it takes two seconds, and every command imports this.
"""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Inverse strengths of the L2 penalty that are tried, strongest first. Features are standardised,
# so that one range serves all widths.
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
NUM_FOLDS = 4
MOST_CLASSES = 50  # beyond them a fit to 2,000 images takes minutes


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features as they are: standardising them is part of its weights.

    Attributes:
        weight: float64 [C, D]; of two classes, too, one row each.
        bias: float64 [C].
        classes: LongTensor [C], the label of each row, ascending.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor

    def predict(self, vectors: Tensor) -> Tensor:
        """Return the class of each vector, [N, D] -> LongTensor [N]."""
        return self.classes[(vectors.double() @ self.weight.T + self.bias).argmax(dim=1)]


def linear_probe_predict(
    train_vectors: Tensor, train_labels: Tensor, test_vectors: Tensor
) -> Tensor:
    """Return the class of each test vector, LongTensor [N], by logistic regression.

    Features are standardised by the training part. The penalty is chosen inside the training
    part, by the mean balanced accuracy of four folds, the strongest of equals: with some 50
    images, a single fold's choice moved scores by ten points between draws. Classes weigh the
    same however many images they have. Nothing is random.

    Args:
        train_vectors: [M, D].
        train_labels: LongTensor [M], of two classes at least, in an order without meaning.
        test_vectors: [N, D].
    """
    fit = _fit(train_vectors, train_labels)
    test = (test_vectors.double() - fit.mean) / fit.deviation
    return torch.from_numpy(fit.model.predict((test @ fit.span).numpy())).long()


def fit_linear_probe(vectors: Tensor, labels: Tensor) -> LinearProbe:
    """Return the classifier that `linear_probe_predict` predicts with.

    Args:
        vectors: [M, D].
        labels: LongTensor [M], of two classes at least, in an order without meaning.
    """
    fit = _fit(vectors, labels)
    weight = torch.from_numpy(fit.model.coef_).double() @ fit.span.T / fit.deviation
    bias = torch.from_numpy(fit.model.intercept_).double() - weight @ fit.mean
    if len(weight) == 1:  # one row for two classes: half of it each is the same softmax
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return LinearProbe(weight, bias, torch.from_numpy(fit.model.classes_).long())


class _Fit(NamedTuple):
    """A regression in coordinates of the standardised training vectors' span [D, min(M, D)]."""

    model: Any
    mean: Tensor
    deviation: Tensor
    span: Tensor


def _fit(train_vectors: Tensor, train_labels: Tensor) -> _Fit:
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

    mean = train_vectors.double().mean(dim=0)
    deviation = train_vectors.double().std(dim=0)
    deviation = torch.where(deviation > 1e-12, deviation, 1.0)  # a constant says nothing
    train = (train_vectors.double() - mean) / deviation
    # The weights of a regression with an L2 penalty lie in the span of its training vectors: in
    # coordinates of that span the result is the same and wide features cost no more than narrow.
    span = torch.linalg.svd(train, full_matrices=False).Vh.T  # [D, min(M, D)]
    labels = train_labels.numpy()
    folds = _folds(labels)
    model = LogisticRegression(class_weight="balanced", max_iter=500)
    if folds:
        model = LogisticRegressionCV(
            Cs=INVERSE_PENALTIES,
            l1_ratios=(0.0,),
            cv=folds,
            scoring="balanced_accuracy",
            class_weight="balanced",
            max_iter=500,
        )
    with warnings.catch_warnings():
        # Stopped early is a slightly stronger penalty, which is as good; a fold may lack a class
        # to score; and the versions of scikit-learn announce changes that do not concern us.
        warnings.simplefilter("ignore")
        model.fit((train @ span).numpy(), labels)
    return _Fit(model, mean, deviation, span)


def _folds(labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (training, test) indices by which penalties are compared; none without two of a class.

    The only image of a class is never held out: there would be none to learn it from.
    """
    from sklearn.model_selection import StratifiedKFold

    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    several = np.flatnonzero(sizes[classes] > 1)
    if not len(several):
        return []
    splitter = StratifiedKFold(min(NUM_FOLDS, sizes.max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer images than there are folds
        held_out = [several[test] for _, test in splitter.split(several, labels[several])]
    return [(np.setdiff1d(np.arange(len(labels)), test), test) for test in held_out]


def balanced_accuracy(predictions: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> float:
    """Return the mean over the classes in `labels` of the share of their images that is right."""
    right, labels = np.asarray(predictions) == np.asarray(labels), np.asarray(labels)
    return float(np.mean([right[labels == name].mean() for name in np.unique(labels)]))
