"""What only a GPU can show: `python -m pytest -m gpu` runs it and says at its end what ran where.

The contract of the backends in every precision, training eager and compiled, exact resuming, two
processes on NCCL where two GPUs are there, and the bench.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backend_contract import CASES, Case, fresh_copy, loss_weights
from comparison import assert_relative
from pictures_on_disk import write_pictures
from real_runs import final_state, pretrain_arguments

from fcmae.data.transfer import DeviceBatches
from fcmae.errors import DONE, INTERRUPTED
from fcmae.runs.metrics import read_metrics
from fcmae.settings.sections import OptimConfig
from fcmae.training.optimization import Optimization, create_optimizer, set_tf32
from fcmae.training.processes import Processes
from sparse import BackendUnavailableError, SparseConvNeXt, UnsupportedModelError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
STEPS = 20
# Largest error of features over their largest value, against the naive reference in float64.
BOUNDS = {"fp32": 3e-5, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
# Of all gradients together: the length of the error over the length of the gradient. Norms amplify
# what a product lost, and single parameters whose gradients cancel say nothing. Where a case is so
# badly conditioned that a CPU loses more at the same width of products, that much is allowed.
GRADIENT_BOUNDS = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 2e-1, "fp16": 5e-2}


@pytest.fixture
def tf32() -> Iterator[None]:
    """Leave torch's switches as they were."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("precision", list(BOUNDS))
@pytest.mark.parametrize("backend", ["native", "native on Triton", "masked_dense", "minkowski"])
def test_features_and_gradients_are_those_of_the_reference(
    backend: str, precision: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCMAE_TRITON", "1" if backend.endswith("Triton") else "0")
    backend = backend.split()[0]
    if backend == "minkowski" and precision in ("bf16", "fp16"):
        pytest.skip("MinkowskiEngine computes in float32 and float64")
    dense = fresh_copy(case.dense, torch.float32).cuda()
    try:
        encoder = SparseConvNeXt(
            dense, backend=backend, grn_scope=case.grn_scope, patch_size=case.patch_size
        ).cuda()
    except (BackendUnavailableError, UnsupportedModelError) as error:
        pytest.skip(str(error))
    set_tf32(precision)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    context = torch.autocast("cuda", dtype=low) if low else contextlib.nullcontext()
    images, visible = case.inputs()
    with context:
        features = encoder(images.float().cuda(), visible.cuda())
    expected, _, gradients = case.expected
    assert_relative(features.double().cpu(), expected, BOUNDS[precision])
    (features * loss_weights(expected).to(features)).sum().backward()
    found = {name: parameter.grad for name, parameter in dense.named_parameters()}
    # MinkowskiEngine's layers hold weights of their own.
    pairs = [(found[name], value) for name, value in gradients.items() if found[name] is not None]
    assert pairs or backend == "minkowski"
    bound = GRADIENT_BOUNDS[precision]
    if lost(pairs) > bound:
        bound = 2 * lost_on_a_cpu(case, precision)
    assert lost(pairs) <= bound


def lost(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Length of the errors of gradients over the length of the gradients."""
    errors = [float((one.double().cpu() - other).norm()) for one, other in pairs]
    return math.hypot(*errors) / math.hypot(*(float(other.norm()) for _, other in pairs))


def lost_on_a_cpu(case: Case, precision: str) -> float:
    """What a CPU loses of the gradients in autocast of as many bits; fp16 has those of tf32."""
    if precision == "fp32":
        return 0.0
    dense = fresh_copy(case.dense, torch.float32)
    encoder = SparseConvNeXt(dense, grn_scope=case.grn_scope, patch_size=case.patch_size)
    images, visible = case.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16 if precision == "bf16" else torch.float16):
        features = encoder(images.float(), visible)
    expected, _, gradients = case.expected
    (features * loss_weights(expected).to(features)).sum().backward()
    found = {name: parameter.grad for name, parameter in dense.named_parameters()}
    return lost([(found[n], value) for n, value in gradients.items() if found[n] is not None])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 24)
    return folder


def words(data: Path, run_dir: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {
        "model__name": "convnextv2_atto",
        "train__device": "cuda",
        "train__precision": "fp32",
        "data__workers": 2,
        "log__every_steps": 1,
    }
    return pretrain_arguments(data, run_dir, STEPS, **{**settings, **changes})


def train(arguments: list[str], *launcher: str) -> None:
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "fcmae", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == DONE, done.stderr


def losses(run_dir: Path) -> list[float]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [line["loss"] for line in lines if line.get("loss") is not None]


@pytest.fixture(scope="module")
def eager(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("eager") / "run"
    train(words(data, run_dir))
    return run_dir


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("compile_it", [False, True], ids=["eager", "compiled"])
def test_training_follows_that_of_eager_fp32(
    compile_it: bool, precision: str, data: Path, eager: Path, tmp_path: Path
) -> None:
    changes = {"train__precision": precision, "train__compile": str(compile_it).lower()}
    train(words(data, tmp_path / "run", **changes))
    found, expected = losses(tmp_path / "run"), losses(eager)
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=0.05)


def test_a_stopped_run_goes_on_with_what_its_checkpoint_holds(
    data: Path, eager: Path, tmp_path: Path
) -> None:
    arguments = words(data, tmp_path / "run", model__drop_path=0.2)
    process = subprocess.Popen([sys.executable, "-m", "fcmae", *arguments])
    lines = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 300
    while not any(line["step"] >= 5 for line in read_metrics(lines)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) in (INTERRUPTED, DONE)
    train(arguments)
    train(words(data, tmp_path / "straight", model__drop_path=0.2))
    stopped, straight = (final_state(tmp_path / name) for name in ("run", "straight"))
    assert stopped["progress"]["step"] == straight["progress"]["step"] == STEPS
    assert_nearly_the_same(stopped, straight)


def assert_nearly_the_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare runs whose sums CUDA adds in no fixed order; another mask would be far away.

    AdamW's steps have one length however small a gradient, so that single weights may differ.
    """
    losses = found["progress"]["history"], expected["progress"]["history"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    weights = [torch.cat([w.flatten() for w in run["model"].values()]) for run in (found, expected)]
    assert (weights[0] - weights[1]).norm() <= 1e-2 * weights[1].norm()


def test_results_that_are_read_late_are_those_that_are_read_at_once(
    data: Path, eager: Path, tmp_path: Path
) -> None:
    # A step that is logged is read at once.
    train(words(data, tmp_path / "late", log__every_steps=STEPS, checkpoint__every_steps=STEPS))
    late, at_once = final_state(tmp_path / "late"), final_state(eager)
    assert late["progress"]["step"] == at_once["progress"]["step"] == STEPS
    assert_nearly_the_same(late, at_once)


def test_a_result_that_is_read_late_does_not_wait_for_the_device() -> None:
    model = torch.nn.Linear(4096, 4096).cuda()
    groups = [{"params": list(model.parameters())}]
    processes = Processes(0, 1, torch.device("cuda", torch.cuda.current_device()))
    optimizer = create_optimizer(groups, OptimConfig(base_lr=0.1), processes.device)
    optimization = Optimization(model, optimizer, lambda step: 0.1, processes, is_late=True)
    rows = torch.randn(4096, 4096, device="cuda")
    torch.cuda.set_sync_debug_mode("error")  # whatever waits raises
    try:
        taken = [
            optimization.step(
                step, [rows], lambda rows: model(rows).square().mean(), lambda: [True]
            )
            for step in range(3)
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for late in taken:
        assert late.read().is_finite
        assert late.read().agreed == (True,)


def weights_after_steps(is_ahead: bool) -> list[torch.Tensor]:
    """Train on batches that the device gets, waiting for nothing; return the weights."""
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.GELU()).to(device)
    groups = [{"params": list(model.parameters())}]
    processes = Processes(0, 1, device)
    optimizer = create_optimizer(groups, OptimConfig(base_lr=0.1), device)
    optimization = Optimization(
        model, optimizer, lambda step: 1e-3, processes, accumulate=2, is_late=True
    )
    rng = torch.Generator().manual_seed(1)
    read = [{"image": torch.randn(2048, 2048, generator=rng).pin_memory()} for _ in range(16)]
    batches = DeviceBatches(read, device)

    def micro_batches() -> Iterator[dict[str, Any]]:
        for _, on_device in itertools.islice(batches, 2):
            yield on_device
            if is_ahead:
                batches.read_ahead()

    torch.cuda.set_sync_debug_mode("error")  # whatever waits raises
    try:
        for step in range(8):
            optimization.step(
                step, micro_batches(), lambda batch: model(batch["image"]).square().mean()
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [parameter.detach().cpu() for parameter in model.parameters()]


def test_batches_that_are_copied_beside_a_step_are_those_that_are_copied_before_it() -> None:
    weights_after_steps(is_ahead=True)  # memory that is fresh the first time is used again
    for one, other in zip(weights_after_steps(True), weights_after_steps(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_by_cuda_graphs_follows_that_of_eager_fp32(
    accumulate: int, data: Path, eager: Path, tmp_path: Path
) -> None:
    changes = {"train__compile": "reduce-overhead", "train__accumulate": accumulate}
    train(words(data, tmp_path / "run", **changes, train__batch_size=4 // accumulate))
    for one, other in zip(losses(tmp_path / "run"), losses(eager), strict=True):
        assert one == pytest.approx(other, rel=0.05)


def test_drop_path_on_a_gpu_that_is_not_the_first_is_seeded(data: Path, tmp_path: Path) -> None:
    last = torch.cuda.device_count() - 1
    device = {"train__device": f"cuda:{last}", "model__drop_path": 0.5}
    for name in ("one", "two"):
        train(words(data, tmp_path / name, **device))
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-3)


@pytest.mark.ddp
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize("compile_it", [False, True], ids=["eager", "compiled"])
def test_two_processes_train_as_one(
    compile_it: bool, data: Path, eager: Path, tmp_path: Path
) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    changes = {"train__batch_size": 2, "train__compile": str(compile_it).lower()}
    train(words(data, tmp_path / "run", **changes), *launcher)
    assert losses(tmp_path / "run") == pytest.approx(losses(eager), rel=1e-3)


def test_the_certificate_holds_on_the_gpu() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fcmae", "verify", "--device", "cuda"),
            *("--model.name", "convnextv2_atto", "--data.image_size", "64"),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == DONE, done.stdout + done.stderr
    for precision in ("float64", "float32", "tf32", "bf16", "fp16"):
        assert f"native = reference, {precision}: features" in done.stdout


def test_the_bench_runs(tmp_path: Path) -> None:
    arguments = ["bench", "--output", str(tmp_path / "bench"), "--device", "cuda"]
    arguments += ["--models", "[convnextv2_atto]", "--batch_size", "2", "--repeats", "2"]
    arguments += ["--precisions", "[fp32, bf16]", "--image_size", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "fcmae", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == DONE, done.stderr
    assert (tmp_path / "bench" / "results.json").is_file()
