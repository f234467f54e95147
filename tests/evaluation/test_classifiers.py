"""kNN and linear probe against cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fcmae.evaluation import balanced_accuracy, knn_predict, linear_probe, linear_probe_predict


def unit(*degrees: float) -> torch.Tensor:
    """Vectors of the plane, by angle, of various lengths: only the angle may count."""
    angles = torch.tensor(degrees).deg2rad()
    lengths = torch.arange(1.0, len(degrees) + 1)[:, None]
    return lengths * torch.stack([angles.cos(), angles.sin()], dim=1)


def balanced(*degrees: float) -> torch.Tensor:
    """Vectors by angle whose mean is the origin: the last one, far from the others, sees to it."""
    vectors = unit(*degrees)
    return torch.cat([vectors, -vectors.sum(dim=0, keepdim=True)])


def test_knn_weighs_neighbours_by_similarity() -> None:
    train, labels = balanced(10, 40, 45), torch.tensor([0, 1, 1, 2])
    # At T = 1 the two farther neighbours win: e^cos(10) = 2.68 < e^cos(40) + e^cos(45) = 4.18.
    # At T = 0.05 the near one wins: e^(cos(10)/T) is 84 and 286 times those of the others.
    test = unit(0.0)
    assert knn_predict(train, labels, test, k=3, temperature=1.0).tolist() == [1]
    assert knn_predict(train, labels, test, k=3, temperature=0.05).tolist() == [0]


def test_knn_vote_flips_at_the_temperature_computed_by_hand() -> None:
    train, labels = balanced(0, 60, -60), torch.tensor([0, 1, 1, 2])
    # Similarities 1, 1/2, 1/2: class 1 wins when 2 exp(0.5 / T) > exp(1 / T), T > 0.5 / ln 2.
    limit = 0.5 / math.log(2)
    for temperature, winner in ((limit * 1.01, 1), (limit * 0.99, 0)):
        predicted = knn_predict(train, labels, unit(0.0), k=3, temperature=temperature)
        assert predicted.tolist() == [winner]


def test_knn_asks_no_more_than_k_neighbours() -> None:
    train, labels = balanced(5, 50, 55), torch.tensor([0, 1, 1, 2])
    assert knn_predict(train, labels, unit(0.0), k=1, temperature=100.0).tolist() == [0]
    assert knn_predict(train, labels, unit(0.0), k=9, temperature=100.0).tolist() == [1]


def test_knn_does_not_depend_on_where_the_origin_lies() -> None:
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(80) % 2
    points = torch.randn(80, 6, generator=rng)
    points[:, 0] += 3 * labels
    near = knn_predict(points[:40], labels[:40], points[40:])
    far = points + 1000 * torch.ones(6)  # all cosines are 1 but for 1e-6
    assert torch.equal(knn_predict(far[:40], labels[:40], far[40:]), near)
    assert (near == labels[40:]).float().mean() > 0.8


def test_knn_does_not_depend_on_the_chunks() -> None:
    rng = torch.Generator().manual_seed(0)
    train, test = torch.randn(30, 5, generator=rng), torch.randn(17, 5, generator=rng)
    labels = torch.randint(3, (30,), generator=rng)
    whole = knn_predict(train, labels, test)
    assert torch.equal(whole, knn_predict(train, labels, test, chunk_images=4))
    assert len(whole.unique()) > 1


def test_linear_probe_separates_what_a_line_separates_whatever_the_units() -> None:
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(300, 2, generator=rng)
    labels = (points[:, 0] + 0.5 * points[:, 1] > 0).long()
    points = points * torch.tensor([1e-4, 1e3]) + torch.tensor([5.0, -7.0])
    predicted = linear_probe_predict(points[:200], labels[:200], points[200:])
    assert (predicted == labels[200:]).float().mean() > 0.95


def test_linear_probe_is_deterministic_and_takes_constant_features() -> None:
    rng = torch.Generator().manual_seed(0)
    points, labels = torch.randn(40, 4, generator=rng), torch.arange(40) % 3
    points[:, 2] = 6.0
    first = linear_probe_predict(points[:30], labels[:30], points)
    assert torch.equal(first, linear_probe_predict(points[:30], labels[:30], points))
    assert first.dtype == torch.int64


def test_linear_probe_of_wide_features_is_plain_logistic_regression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Features wider than the training images are many take a shortcut; it changes nothing."""
    rng = torch.Generator().manual_seed(4)
    labels = torch.arange(80) % 3
    points = torch.randn(80, 70, generator=rng, dtype=torch.float64)
    points[:, 0] += labels
    train, test = points[:40], points[40:]
    mean, deviation = train.mean(dim=0), train.std(dim=0)
    for penalty in (0.01, 1.0):
        monkeypatch.setattr(linear_probe, "INVERSE_PENALTIES", (penalty,))
        plain = LogisticRegression(C=penalty, class_weight="balanced", max_iter=500)
        plain.fit((train - mean) / deviation, labels[:40])
        expected = plain.predict((test - mean) / deviation).tolist()
        assert linear_probe_predict(train, labels[:40], test).tolist() == expected


def test_linear_probe_penalises_noise_more_than_fine_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    labels = torch.arange(400) % 2
    sides = labels.numpy() - 0.5
    # Two near copies whose difference alone tells: strong penalties cannot see it.
    shared = rng.normal(size=400)
    fine = np.stack([shared, shared + 0.2 * sides + 0.02 * rng.normal(size=400)], axis=1)
    noisy = rng.normal(size=(400, 60)) + 0.3 * sides[:, None]

    def score(vectors: np.ndarray) -> float:
        points = torch.from_numpy(vectors)
        predicted = linear_probe_predict(points[:120], labels[:120], points[120:])
        return float((predicted == labels[120:]).float().mean())

    chosen = score(fine), score(noisy)
    for place, wrong in ((0, 1e-3), (1, 10.0)):
        with monkeypatch.context() as patch:
            patch.setattr(linear_probe, "INVERSE_PENALTIES", (wrong,))
            assert score((fine, noisy)[place]) < chosen[place] - 0.02


def test_the_only_image_of_a_class_is_learned_from_and_never_held_out() -> None:
    rng = torch.Generator().manual_seed(2)
    labels = torch.tensor([0] * 12 + [1] * 3 + [2])
    points = torch.randn(16, 5, generator=rng) + 6 * torch.eye(5)[labels]
    assert linear_probe_predict(points, labels, points).tolist() == labels.tolist()


def test_linear_probe_works_with_one_image_per_class() -> None:
    points, labels = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([3, 5])
    assert linear_probe_predict(points, labels, points).tolist() == [3, 5]


def test_balanced_accuracy_weighs_classes_equally() -> None:
    labels = np.array([0, 0, 0, 0, 4, 4])
    predictions = np.array([0, 0, 0, 4, 4, 9])  # 3 of 4 and 1 of 2
    assert balanced_accuracy(predictions, labels) == (0.75 + 0.5) / 2
