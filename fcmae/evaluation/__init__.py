"""Whether features are any good: frozen features, kNN, linear probe, and a fair comparison.

Scores of classifiers, label-free health and pictures are in files and a folder of their own.
"""

from fcmae.evaluation.choosing import choose_scored
from fcmae.evaluation.features import (
    Describer,
    Features,
    evaluating,
    evaluation_loader,
    extract_features,
    extract_together,
    pooled_features,
    thumbnails,
    with_masks,
)
from fcmae.evaluation.knn import knn_predict
from fcmae.evaluation.label_draws import Sides, draw_labels, sides_of
from fcmae.evaluation.linear_probe import (
    MOST_CLASSES,
    balanced_accuracy,
    fit_linear_probe,
    linear_probe_predict,
)
from fcmae.evaluation.protocol import (
    METHODS,
    Scores,
    check_draws,
    difference,
    score_features,
    sentence,
    summary,
    table,
)
from fcmae.evaluation.statistics import RULE, Mean, PairedDifference, differences, means, pairwise

__all__ = [
    "METHODS",
    "MOST_CLASSES",
    "RULE",
    "Describer",
    "Features",
    "Mean",
    "PairedDifference",
    "Scores",
    "Sides",
    "balanced_accuracy",
    "check_draws",
    "choose_scored",
    "difference",
    "differences",
    "draw_labels",
    "evaluating",
    "evaluation_loader",
    "extract_features",
    "extract_together",
    "fit_linear_probe",
    "knn_predict",
    "linear_probe_predict",
    "means",
    "pairwise",
    "pooled_features",
    "score_features",
    "sentence",
    "sides_of",
    "summary",
    "table",
    "thumbnails",
    "with_masks",
]
