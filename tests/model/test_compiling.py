"""torch.compile by name: one graph of one shape for all masks, and gradients that add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from speck import SPECK
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from fcmae.errors import ConfigError
from fcmae.model.autoencoder import FCMAE
from fcmae.model.compiling import begin_call, check_compiling, compiled, holds_graphs
from fcmae.model.masking import draw_visible
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import from_plain, parse, to_plain
from fcmae.settings.sections import OptimConfig
from fcmae.training.optimization import Optimization, create_optimizer, parameter_groups
from fcmae.training.processes import Processes
from sparse.ops import activation_compiled, depthwise_compiled

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MODES = ("default", "max-autotune-no-cudagraphs", "reduce-overhead")


@pytest.fixture
def seen_by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[Any]]]:
    """Compile as a GPU does, without code: the canvas, and torch's graphs run as they stand."""
    for kernels in (depthwise_compiled, activation_compiled):
        monkeypatch.setattr(kernels, "is_available", lambda blocks: False)
    counter, asked, compile_ = CompileCounterWithBackend("aot_eager"), [], torch.compile

    def compile_without_code(called: Any, *, mode: str, dynamic: bool) -> Any:
        asked.append(mode)
        return compile_(called, backend=counter, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile_without_code)
    torch._dynamo.reset()
    counters.clear()
    yield counter, asked
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", [True, *MODES])
@pytest.mark.filterwarnings(  # torch 2.8 warns of what its own compiler does
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)
def test_all_steps_of_a_training_run_one_graph(
    mode: Any, seen_by_torch: tuple[Any, list[Any]]
) -> None:
    counter, asked = seen_by_torch
    model = FCMAE(SPECK, image_size=64, decoder_dim=16)
    groups = parameter_groups(model.named_parameters(), 0.05)
    optimizer = create_optimizer(groups, OptimConfig(base_lr=1e-3), CPU)
    network = compiled(model, mode)
    optimization = Optimization(
        network, optimizer, lambda step: 1e-3, Processes(0, 1, CPU), precision="bf16", accumulate=2
    )
    rng = torch.Generator().manual_seed(0)
    for step in range(3):
        masks = [draw_visible(2, 4, 0.5, rng) for _ in range(2)]
        images = torch.randn(2, 3, 64, 64, generator=rng)
        optimization.step(step, masks, lambda visible, images=images: network(images, visible).loss)
    assert asked == ["default" if mode is True else mode]
    assert counter.frame_count == 1
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not counters["recompile_limit"]


def test_what_is_not_compiled_is_itself() -> None:
    model = torch.nn.Linear(1, 1)
    assert compiled(model, False) is model


def test_graphs_are_held_on_a_gpu_alone() -> None:
    assert holds_graphs("reduce-overhead", GPU)
    assert not holds_graphs("reduce-overhead", CPU)
    assert not any(holds_graphs(mode, GPU) for mode in (False, True, *MODES[:2]))
    begin_call("reduce-overhead", CPU)  # has nothing to say


def test_a_graph_does_not_hold_an_exchange_of_gradients() -> None:
    for mode in (False, True, *MODES):
        check_compiling(mode, 1)
    for mode in (False, True, *MODES[:2]):
        check_compiling(mode, 2)
    with pytest.raises(ConfigError, match=r"train.compile: got reduce-overhead in 2 processes"):
        check_compiling("reduce-overhead", 2)


def test_gradients_that_are_overwritten_by_the_next_still_add_up() -> None:
    """As CUDA graphs do: every gradient lies where the last one lay."""

    class Overwriting(torch.autograd.Function):
        place = torch.zeros(2)

        @staticmethod
        def forward(ctx: Any, weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(rows)
            return (weight * rows).sum()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            Overwriting.place.copy_(grad * ctx.saved_tensors[0])
            return Overwriting.place.detach(), None

    def weight_after_a_step(owns_gradients: bool) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.zeros(2))
        optimization = Optimization(
            torch.nn.Identity(),
            torch.optim.SGD([weight], lr=1.0),
            lambda step: 1.0,
            Processes(0, 1, CPU),
            accumulate=2,
            owns_gradients=owns_gradients,
        )
        rows = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])]
        optimization.step(0, rows, lambda rows: Overwriting.apply(weight, rows))
        return weight.detach()

    expected = torch.tensor([-0.5, -1.5])
    assert not torch.equal(weight_after_a_step(False), expected)  # what this guards against
    assert torch.equal(weight_after_a_step(True), expected)


@pytest.mark.parametrize(
    ("said", "known"), [("true", True), ("false", False), *((mode, mode) for mode in MODES)]
)
def test_the_setting_takes_a_switch_or_a_mode_and_is_recorded_as_it_stands(
    said: str, known: bool | str
) -> None:
    words = ["--data.path", "x", "--run.dir", "y", "--train.steps", "1", "--train.compile", said]
    config = parse(PretrainConfig, words, prog="fcmae pretrain")
    assert config.train.compile == known
    assert type(config.train.compile) is type(known)
    again = from_plain(PretrainConfig, to_plain(config), where="config.yaml")
    assert again.train.compile == known


def test_another_mode_is_refused_with_those_that_there_are() -> None:
    words = ["--data.path", "x", "--run.dir", "y", "--train.steps", "1", "--train.compile", "fast"]
    with pytest.raises(ConfigError, match=r"train.compile: got 'fast', expected true or false or"):
        parse(PretrainConfig, words, prog="fcmae pretrain")
