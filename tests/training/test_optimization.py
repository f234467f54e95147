"""One optimizer step: accumulation, clipping, finiteness, precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fcmae.errors import ConfigError
from fcmae.training.optimization import Optimization, StepResult, check_precision, set_tf32
from fcmae.training.processes import Processes
from fcmae.training.progress import nonfinite_loss_error

ALONE = Processes(0, 1, torch.device("cpu"))


def make(
    *, lr: float = 0.1, scales: tuple[float, ...] = (1.0,), **settings: object
) -> tuple[nn.Linear, Optimization]:
    model = nn.Linear(3, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        model.bias.fill_(0.25)
    groups = [{"params": [model.weight], "lr_scale": scales[0]}, {"params": [model.bias]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    return model, Optimization(model, optimizer, lambda step: lr, ALONE, **settings)  # type: ignore[arg-type]


def batches(count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return list(torch.randn(8, 3, generator=rng, dtype=torch.float64).chunk(count))


def take(model: nn.Module, optimization: Optimization, parts: Iterable[Tensor]) -> StepResult:
    return optimization.step(0, parts, lambda batch: model(batch).square().mean())


def test_micro_steps_give_the_loss_gradient_and_step_of_the_whole_batch() -> None:
    results, weights = [], []
    for count in (1, 2, 4):
        model, optimization = make(accumulate=count)
        results.append(take(model, optimization, batches(count)))
        weights.append(model.weight.detach())
    for result, weight in zip(results, weights, strict=True):
        assert result.loss == pytest.approx(results[0].loss, rel=1e-12)
        assert result.grad_norm == pytest.approx(results[0].grad_norm, rel=1e-12)
        torch.testing.assert_close(weight, weights[0], rtol=1e-12, atol=0)


def test_the_norm_before_clipping_is_told_and_the_step_is_clipped() -> None:
    model, optimization = make(lr=1.0, clip_grad=0.01)
    before = torch.cat([model.weight.detach().flatten(), model.bias.detach()]).clone()
    result = take(model, optimization, batches(1))
    after = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    assert result.grad_norm > 1
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_rate_of_a_step_reaches_every_group_with_its_scale() -> None:
    model, optimization = make(lr=0.5, scales=(0.2,))
    result = take(model, optimization, batches(1))
    assert result.lr == 0.5
    groups = optimization.state_dict()["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [0.1, 0.5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(bad: float) -> None:
    model, optimization = make(accumulate=2)
    before = model.weight.detach().clone()
    parts = batches(2)
    parts[1][0, 0] = bad
    result = take(model, optimization, parts)
    assert not result.is_finite
    assert not math.isfinite(result.loss)
    assert torch.equal(model.weight, before)


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    model, optimization = make()
    before = model.weight.detach().clone()
    # d sqrt(x) / dx is infinite at 0, where sqrt itself is finite.
    result = optimization.step(
        0, batches(1), lambda batch: (model(batch).mean() - model(batch).mean()).sqrt()
    )
    assert math.isfinite(result.loss)
    assert not math.isfinite(result.grad_norm)
    assert not result.is_finite
    assert torch.equal(model.weight, before)


def test_answers_are_asked_for_after_the_work_of_the_step() -> None:
    model, optimization = make()
    events: list[str] = []

    def compute(batch: Tensor) -> Tensor:
        events.append("loss")
        loss: Tensor = model(batch).mean()
        return loss

    def answer() -> tuple[bool, bool]:
        events.append("answer")
        return True, False

    result = optimization.step(0, batches(1), compute, answer)
    assert result.agreed == (True, False)
    assert events == ["loss", "answer"]


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision: fp16 needs a GPU.*use bf16 or fp32"):
        make(precision="fp16")


def test_bf16_runs_the_model_in_bfloat16_and_keeps_weights_and_loss_exact() -> None:
    model, optimization = make(precision="bf16")
    model.float()
    seen: list[torch.dtype] = []

    def compute(batch: Tensor) -> Tensor:
        output = model(batch)
        seen.append(output.dtype)
        loss: Tensor = output.float().square().mean()
        return loss

    optimization.step(0, [batches(1)[0].float()], compute)
    assert seen == [torch.bfloat16]
    assert model.weight.dtype == torch.float32
    assert model.weight.grad is not None
    assert model.weight.grad.dtype == torch.float32


def test_a_scaler_survives_losses_that_are_not_finite_and_comes_back() -> None:
    """The scaler of fp16, which also works on CPUs, so that its logic is tested everywhere."""
    model, optimization = make()
    model.float()
    optimization.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    good, bad = batches(1)[0].float(), torch.full((2, 3), math.nan)
    before = model.weight.detach().clone()
    for _ in range(2):  # without an update of the scaler the second one would be refused
        assert not take(model, optimization, [bad]).is_finite
    assert torch.equal(model.weight, before)
    assert optimization.scaler.get_scale() == 256.0
    assert take(model, optimization, [good]).is_finite
    assert not torch.equal(model.weight, before)
    state = optimization.state_dict()
    _, other = make()
    other.scaler = torch.amp.GradScaler("cpu")
    other.load_state_dict(state)
    assert other.scaler.get_scale() == 256.0


def test_the_error_of_a_loss_that_is_not_finite_says_all_and_saves_the_batch(
    tmp_path: Path,
) -> None:
    names = ["a.png", "b.png", "c.png", "d\udc80.png", "e.png"]
    batch = {"image": torch.ones(5, 1, 2, 2), "index": torch.arange(5), "path": names}
    result = StepResult(math.nan, 1e-3, math.inf, False, ())
    error = nonfinite_loss_error(12, 1, result, [batch], [0.5, 0.25], tmp_path)
    text = str(error)
    assert text.startswith("step 12, process 1: the loss is nan, the gradient's norm inf, the")
    assert "learning rate 0.001; finite losses before: 0.5, 0.25." in text
    assert "'a.png', 'b.png', 'c.png', 'd\\udc80.png' and 1 more" in text
    assert "train.skip_nonfinite_steps" in text
    saved = torch.load(tmp_path / "nonfinite-step-00000012-1.pt", weights_only=True)
    assert saved["step"] == 12
    assert torch.equal(saved["batches"][0]["image"], batch["image"])
    assert saved["batches"][0]["path"][3] == "d\\x80.png"


def test_a_batch_that_cannot_be_saved_is_said_in_the_error(tmp_path: Path) -> None:
    result = StepResult(math.nan, 1e-3, math.nan, False, ())
    error = nonfinite_loss_error(1, 0, result, [{"path": ["a"]}], [], tmp_path / "gone")
    assert "its batch could not be saved" in str(error)
    assert "finite losses before: none" in str(error)


@pytest.fixture
def tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
def test_fp32_is_ieee_and_tf32_a_choice_of_its_own() -> None:
    for precision, allowed in (("fp32", False), ("tf32", True), ("bf16", True), ("fp32", False)):
        set_tf32(precision)
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_precision_of_gpus_is_refused_on_a_cpu(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"train.precision: {precision} needs a GPU"):
        check_precision(precision, torch.device("cpu"))
