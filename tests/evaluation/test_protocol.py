"""The comparison over label draws: fair, repeatable, and silent about noise."""

import math
import sys
from collections.abc import Callable

import pytest
import torch
from scipy import stats

from fcmae.errors import ConfigError, DataError
from fcmae.evaluation import (
    METHODS,
    RULE,
    Features,
    Scores,
    choose_scored,
    difference,
    draw_labels,
    score_features,
    sentence,
    summary,
    table,
)


def features_of(labels: torch.Tensor, signal: float, seed: int) -> Features:
    """Noise of six numbers, the first of which tells classes apart by `signal` deviations."""
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(labels), 6, generator=rng)
    vectors[:, 0] += signal * labels
    return Features(vectors, labels, tuple(map(str, range(len(labels)))))


LABELS = torch.arange(240) % 3 // 2  # twice as many of class 0


def scores_of(**accuracies: tuple[float, ...]) -> Scores:
    return Scores({"kNN": accuracies}, num_labels=20, num_test=80, num_classes=2)


def test_a_clear_advantage_is_found_and_noise_is_not() -> None:
    features = {
        "pretrained": features_of(LABELS, 4.0, 0),
        "untrained": features_of(LABELS, 0.0, 1),
        "raw pixels": features_of(LABELS, 0.0, 2),
    }
    scores = score_features(features, labels=60)
    assert scores.draws == 5
    assert (scores.num_labels, scores.num_test, scores.num_classes) == (60, 180, 2)
    for method in METHODS:
        assert scores.mean(method, "pretrained") > 85
        assert 35 < scores.mean(method, "untrained") < 65
        assert difference(scores, method, "pretrained", "untrained").exceeds_noise
    text = summary(scores, "pretrained", ("untrained", "raw pixels"))
    assert "kNN: pretrained beats untrained by" in text
    assert "linear: pretrained beats raw pixels by" in text
    assert RULE in text


def test_every_feature_set_and_method_sees_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[list[float]]] = {"kNN": [], "linear": []}

    def remember(method: str) -> Callable[..., torch.Tensor]:
        def predict(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
            seen[method].append([*train[:, 1].tolist(), *test[:, 1].tolist()])
            return torch.zeros(len(test), dtype=torch.long)

        return predict

    for method in seen:
        monkeypatch.setitem(METHODS, method, remember(method))
    index = torch.arange(240.0)
    vectors = torch.stack([torch.zeros(240), index], dim=1)  # the second number names the image
    same = Features(vectors, LABELS, ())
    score_features({"a": same, "b": same}, labels=50, draws=3)
    a, b = seen["kNN"][0::2], seen["kNN"][1::2]
    assert a == b == seen["linear"][0::2] == seen["linear"][1::2]
    assert a[0] != a[1] != a[2]
    assert all(sorted(draw) == index.tolist() for draw in a), "each image on exactly one side"


def test_draws_depend_on_the_seed_alone() -> None:
    features = {"a": features_of(LABELS, 0.7, 0)}
    first = score_features(features, labels=60, methods=("kNN",))
    assert first == score_features(features, labels=60, methods=("kNN",))
    assert first != score_features(features, labels=60, methods=("kNN",), seed=1)


def test_draws_are_stratified_and_no_class_is_used_up() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 8 + [3] * 2)
    for seed in range(5):
        train, test = draw_labels(labels, 20, torch.Generator().manual_seed(seed))
        # Exact shares are 12, 6, 1.6 and 0.4; the last is raised to one.
        counts = torch.bincount(labels[train], minlength=4).tolist()
        assert sum(counts) == 20
        assert counts in ([12, 6, 1, 1], [11, 6, 2, 1], [12, 5, 2, 1])
        assert torch.bincount(labels[test], minlength=4).min() >= 1
        assert not set(train.tolist()) & set(test.tolist())


@pytest.mark.parametrize(
    ("sizes", "wanted", "max_images", "expected"),
    [
        ((5, 5), 6, 100, (5, 5)),
        ((1000, 1000), 6, 10, None),  # ten of them
        ((1000, 3), 6, 10, (8, 2)),  # a rare class is not lost
        ((3, 1, 3), 6, 100, (3, 0, 3)),
        ((1, 1, 1), 6, 100, ()),
        ((4,) * 10, 4, 100, None),  # two classes
        ((3, 1), 6, None, ()),
        ((4,) * 300, 4, None, None),
    ],
)
def test_what_is_scored_has_two_of_every_class_and_no_more_classes_than_labels(
    sizes: tuple[int, ...],
    wanted: int,
    max_images: int | None,
    expected: tuple[int, ...] | None,
) -> None:
    labels = [number for number, size in enumerate(sizes) for _ in range(size)] + [-1, -1]
    indices, told = choose_scored(labels, wanted=wanted, seed=3, max_images=max_images)
    counts = torch.bincount(torch.tensor(labels)[indices], minlength=len(sizes)).tolist()
    if expected == ():
        assert len(indices) == 0
        assert "a score needs two such classes" in told
        return
    assert len(indices) <= (max_images or len(labels))
    if expected is not None:
        assert tuple(counts) == expected
    scored = [count for count in counts if count]
    assert 2 <= len(scored) <= wanted
    assert min(scored) >= 2
    assert (told == "") == (len(scored) == len(sizes))
    assert (choose_scored(labels, wanted=wanted, seed=3, max_images=max_images)[0] == indices).all()


def test_scipy_works_beside_our_package_named_sparse() -> None:
    assert sys.modules["sparse"].__name__ == "sparse"
    assert stats.sem([1.0, 3.0]) == pytest.approx(1.0)  # asks for sparse.SparseArray


def test_spread_and_interval_are_those_of_scipy() -> None:
    ours, theirs = (71.0, 74.0, 69.0, 73.0), (70.0, 70.0, 68.0, 69.5)
    scores = scores_of(ours=ours, theirs=theirs)
    gap = difference(scores, "kNN", "ours", "theirs")
    gaps = [1.0, 4.0, 1.0, 3.5]
    low, high = stats.t.interval(0.95, 3, loc=2.375, scale=stats.sem(gaps))
    assert gap.value == pytest.approx(2.375)
    assert gap.half_width == pytest.approx((high - low) / 2)
    assert scores.mean("kNN", "ours") == pytest.approx(71.75)
    assert scores.spread("kNN", "ours") == pytest.approx(
        math.sqrt(sum((value - 71.75) ** 2 for value in ours) / 3)
    )


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ((5.0, 5.5, 6.0), "kNN: ours beats theirs by 5.5 +- 1.2 points."),
        ((-5.0, -5.5, -6.0), "kNN: ours is worse than theirs by 5.5 +- 1.2 points."),
        (
            (-1.0, 2.0, 5.0),
            "kNN: no difference between ours and theirs beyond the noise of 3 label draws "
            "(+2.0 +- 7.5 points).",
        ),
        (
            (0.0, 0.0, 0.0),
            "kNN: no difference between ours and theirs beyond the noise of 3 label draws "
            "(+0.0 +- 0.0 points).",
        ),
    ],
)
def test_sentence_claims_no_more_than_the_draws_show(
    gaps: tuple[float, ...], expected: str
) -> None:
    scores = scores_of(ours=tuple(50 + gap for gap in gaps), theirs=(50.0, 50.0, 50.0))
    assert sentence(scores, "kNN", "ours", "theirs") == expected


def test_the_stated_rule_alone_decides() -> None:
    """An interval that leaves out 0 counts, also when a single draw has the other sign."""
    gaps = (4.0,) * 19 + (-0.1,)
    scores = scores_of(ours=tuple(50 + gap for gap in gaps), theirs=(50.0,) * 20)
    assert "ours beats theirs by 3.8 +- 0.4" in sentence(scores, "kNN", "ours", "theirs")
    assert "counts when the interval leaves out 0, and is noise otherwise" in RULE


def test_table_shows_mean_and_spread_of_every_set() -> None:
    lines = table(scores_of(pretrained=(70.0, 71.0, 72.0), untrained=(60.0, 60.0, 60.0))).split(
        "\n"
    )
    assert lines[0].split() == ["kNN"]
    assert lines[1].split() == ["pretrained", "71.0", "+-", "1.0"]
    assert lines[2].split() == ["untrained", "60.0", "+-", "0.0"]
    assert lines[3] == (
        "Balanced accuracy in % (2 classes, chance 50): mean +- standard deviation over 3 draws of "
        "20 labels, 80 test images each."
    )


def test_few_images_are_halved_and_lonely_classes_left_out_with_a_note() -> None:
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] + [-1])
    scores = score_features({"a": features_of(labels, 1.0, 0)}, labels=200, draws=3)
    assert (scores.num_labels, scores.num_test, scores.num_classes) == (10, 10, 2)
    assert "2 images without a class of two or more left out." in scores.note
    assert "200 labels asked for, 10 of 20 images taken." in scores.note
    assert scores.note in table(scores)


def test_impossible_comparisons_are_errors() -> None:
    features = {"a": features_of(LABELS, 1.0, 0)}
    with pytest.raises(ConfigError, match="draws: got 2, expected 3 or more: fewer show no spread"):
        score_features(features, draws=2)
    with pytest.raises(ConfigError, match="labels: got 1, expected 2 or more, one for each class"):
        score_features(features, labels=1)
    many = torch.arange(60) % 20
    with pytest.raises(ConfigError, match="labels: got 12, expected 20 or more, one for each"):
        score_features({"a": features_of(many, 1.0, 0)}, labels=12)
    alone = torch.zeros(9, dtype=torch.long)
    with pytest.raises(DataError, match="labels: 1 classes with two images or more, expected at"):
        score_features({"a": features_of(alone, 1.0, 0)})
