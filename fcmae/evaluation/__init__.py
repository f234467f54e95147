"""Whether features are any good: frozen features, kNN, linear probe, and a fair comparison."""

from fcmae.evaluation.features import (
    Features,
    evaluating,
    extract_features,
    extract_together,
    pooled_features,
    raw_pixel_features,
    thumbnails,
)
from fcmae.evaluation.knn import knn_predict
from fcmae.evaluation.linear_probe import balanced_accuracy, linear_probe_predict
from fcmae.evaluation.protocol import (
    Difference,
    Scores,
    difference,
    report,
    score_features,
    sentence,
    table,
)

__all__ = [
    "Difference",
    "Features",
    "Scores",
    "balanced_accuracy",
    "difference",
    "evaluating",
    "extract_features",
    "extract_together",
    "knn_predict",
    "linear_probe_predict",
    "pooled_features",
    "raw_pixel_features",
    "report",
    "score_features",
    "sentence",
    "table",
    "thumbnails",
]
