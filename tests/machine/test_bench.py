"""Benchmarks: what is compared, what is counted, and what is written."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from speck import SPECK

from fcmae.__main__ import main
from fcmae.errors import DONE, MISTAKE, DataError
from fcmae.machine.bench import BenchSettings, measure, output, roofline, vit_mae
from fcmae.machine.bench.measuring import (
    Measurement,
    compared_groups,
    partner_of,
    peak_memory,
)
from fcmae.machine.bench.roofline import counted_flops, matmul_rates
from fcmae.machine.bench.starting import describe_starting, measure_starting
from fcmae.machine.bench.subjects import Subject, prepare
from fcmae.machine.bench.timing import Times, time_in_turns
from fcmae.machine.bench.vit_mae import VitMae
from sparse.backends import native
from sparse.ops import depthwise
from sparse.ops.compiler import missing_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The ViT-MAE's own decoder has 25 million parameters, whatever its encoder has.

    Its smallest encoder has more than atto; matrices whose product is timed are 2048 x 2048.
    """
    monkeypatch.setattr(vit_mae, "DECODER_DEPTH", 1)
    monkeypatch.setattr(vit_mae, "DECODER_WIDTH", 128)
    monkeypatch.setitem(vit_mae.SIZES, 3.4, (64, 12))  # for an atto
    monkeypatch.setattr(roofline, "SIDE", 256)
    yield
    gc.collect()  # optimizers are parts of cycles
    ctypes.CDLL(None).malloc_trim(0)  # what one test held, the next does not


def subject(**settings: object) -> Subject:
    """A small subject, changed as asked for."""
    values: dict[str, object] = {
        "model": "convnextv2_atto",
        "contender": "native",
        "ratio": 0.5,
        "precision": "fp32",
        "part": "backward",
        "batch_size": 1,
        "image_size": 64,
    }
    return Subject(**(values | settings))  # type: ignore[arg-type]


def test_works_take_turns_after_warm_up() -> None:
    calls: list[str] = []
    times = time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3, CPU)
    assert "".join(calls) == "ab" * 5
    assert [len(t.rounds) for t in times] == [3, 3]


def test_a_ratio_is_taken_round_by_round() -> None:
    disturbed, reference = Times((1.0, 30.0, 1.2)), Times((2.0, 60.0, 2.0))
    assert disturbed.ratio(reference) == pytest.approx(0.5)
    assert disturbed.median == 1.2
    assert Times((1.0, 2.0, 3.0)).spread == pytest.approx(0.5)


def test_numbers_of_threads_take_turns_and_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BenchSettings(threads=[1, 2])
    compared = [s for s in next(compared_groups(settings)) if s.contender == "native"]
    assert {s.threads for s in compared} == {1, 2}
    before, seen, convolve = torch.get_num_threads(), set(), depthwise.depthwise_convolution

    def look(*arguments: Any) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return convolve(*arguments)

    monkeypatch.setattr(native, "depthwise_convolution", look)
    prepare(subject(part="forward", threads=2), CPU)()
    assert seen == {2}
    assert torch.get_num_threads() == before


def test_operations_of_visible_sites_by_hand() -> None:
    # atto: depths 2, 2, 6, 2; widths 40, 80, 160, 320; two of four patches visible
    sites = [2 * 64, 2 * 16, 2 * 4, 2 * 1]
    by_hand = 0
    for number, (width, depth) in enumerate(zip((40, 80, 160, 320), (2, 2, 6, 2), strict=True)):
        entrance = width * (48 if number == 0 else 4 * width // 2)
        by_hand += sites[number] * (entrance + depth * (49 * width + 8 * width**2))
    assert counted_flops(subject(part="forward")) == 2 * by_hand
    assert counted_flops(subject(part="backward", batch_size=5)) == 2 * by_hand * 5 * 3
    # The decoder: 2 visible cells are projected, 4 pass its block, 2 are predicted.
    decoder = 2 * 320 * 512 + 4 * (49 * 512 + 8 * 512**2) + 2 * 512 * 32 * 32 * 3
    assert counted_flops(subject(part="step")) == 2 * (by_hand + decoder) * 3


def test_a_group_holds_each_contender_once_and_the_alternatives_of_a_step() -> None:
    settings = BenchSettings(models=["m"], ratios=[0.5, 0.6], compile=True)
    encoder, step = compared_groups(settings)
    assert [(s.contender, s.ratio) for s in encoder if not s.is_compiled] == [
        ("native", 0.5),
        ("native", 0.6),
        ("masked_dense", 0.5),
        ("masked_dense", 0.6),
    ]
    assert len(encoder) == 8
    assert {s.contender for s in step} == {"native", "masked_dense", "vit_mae", "dense"}


@pytest.mark.parametrize("contender", ["native", "masked_dense", "dense", "vit_mae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_contender_takes_a_training_step(
    contender: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    step = torch.optim.AdamW.step

    def count(optimizer: torch.optim.AdamW) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        taken.append(sum(grad is not None for grad in gradients))
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", count)
    prepare(subject(contender=contender, part="step", precision=precision), CPU)()
    assert len(taken) == 1
    assert taken[0] > 50  # parameters that got a gradient


def test_the_vit_has_the_size_nearest_to_the_encoder() -> None:
    with torch.device("meta"):
        small, base = VitMae(28_000_000, 224), VitMae(88_000_000, 224)
    assert (small.embed.out_features, len(small.blocks)) == (384, 12)
    assert base.embed.out_features == 768
    assert 20e6 < sum(p.numel() for p in small.blocks.parameters()) < 24e6


def test_memory_grows_with_the_images_of_a_step() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell")
    one, many = (
        peak_memory(subject(image_size=224, batch_size=batch, threads=1), CPU) for batch in (1, 8)
    )
    assert one is not None
    assert many is not None
    assert many > 2 * one


def test_rates_are_measured_by_torch_and_by_the_linear_layer() -> None:
    rates = matmul_rates(CPU, "fp32")
    assert rates.keys() == {"torch", "sparse.ops.linear"}
    assert min(rates.values()) > 1e8


def test_measuring_pairs_a_backend_with_masked_dense_at_its_ratio() -> None:
    settings = BenchSettings(
        models=["convnextv2_atto"],
        ratios=[0.5, 0.75],
        parts=["backward"],
        batch_size=1,
        image_size=64,
        repeats=1,
        memory=False,
    )
    lines: list[str] = []
    results, rates = measure(settings, CPU, lines.append)
    # Of little: every contender of a step is in memory, with its optimizer.
    step = dataclasses.replace(
        settings, models=[SPECK], backends=["native"], ratios=[0.5], parts=["step"]
    )
    results += measure(step, CPU, lines.append)[0]
    assert len(lines) == 2
    partners = {(r.subject.part, r.subject.contender): r.partner for r in results}
    assert partners["backward", "native"] == "masked_dense"
    assert partners["backward", "masked_dense"] is None
    assert partners["step", "vit_mae"] == partners["step", "native"] == "dense"
    by_ratio = {r.subject.ratio: r for r in results if r.subject.part == "backward"}
    native = next(r for r in results if r.subject.contender == "native")
    masked = next(r for r in results if r.subject.contender == "masked_dense")
    assert native.subject.ratio == masked.subject.ratio == 0.5
    assert native.versus == pytest.approx(native.times.median / masked.times.median)
    assert by_ratio.keys() == {0.5, 0.75}
    table = output.as_table(results, rates)
    assert len(table.splitlines()) == 2 + len(results)
    assert f"{native.versus:.2f} (masked_dense)" in table


def test_the_table_says_roofline_and_memory_of_a_measurement() -> None:
    result = Measurement(
        subject=subject(), times=Times((0.5,)), peak_bytes=3 * 2**20, flops=25_000_000
    )
    row = output.as_table([result], {"fp32": {"torch": 1e8, "other": 2e8}}).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3:5] == ["1", "64"]
    assert cells[7:] == ["500.0", "0%", "2.0", "", "25%", "3"]
    assert "100 by" not in output.describe_rates({"fp32": {"torch": 2e11}})
    assert "200 by torch GFLOP/s" in output.describe_rates({"fp32": {"torch": 2e11}})


def test_the_command_writes_results_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--models", "[convnextv2_atto]", "--batch_size", "1", "--image_size", "64"]
    options += ["--repeats", "1", "--ratios", "[0.5]", "--parts", "[forward]", "--threads", "0"]
    assert main(["bench", *options, "--output", str(tmp_path / "bench")]) == DONE
    shown = capsys.readouterr().out
    assert "convnextv2_atto | forward" in shown
    assert "times as long" not in shown
    written = json.loads((tmp_path / "bench/results.json").read_text())
    assert written["settings"]["ratios"] == [0.5]
    assert len(written["results"]) == 2
    assert written["results"][0]["times"]["rounds"][0] > 0
    assert (tmp_path / "bench/forward.png").stat().st_size > 1000


def test_sizes_take_turns_and_are_given_in_units_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--models", "[convnextv2_atto]", "--batch_size", "[1, 2]", "--memory", "false"]
    options += ["--image_size", "[64, 96]", "--repeats", "2", "--ratios", "[0.5]"]
    options += ["--parts", "[forward]", "--threads", "0", "--output", str(tmp_path)]
    assert main(["bench", *options]) == DONE
    shown = capsys.readouterr().out
    assert "8 contenders" in shown  # in one group
    pattern = r"native, ratio 0\.5: (\d) x (\d+) px take [\d.]+ times as long as 1 x 64 px"
    assert re.findall(pattern, shown) == [("1", "96"), ("2", "64"), ("2", "96")]


def test_scaling_is_taken_round_by_round_and_partners_have_the_same_size() -> None:
    small, large = subject(batch_size=1), subject(batch_size=2)
    results = [
        Measurement(subject=small, times=Times((1.0, 10.0, 1.0))),
        Measurement(subject=large, times=Times((3.0, 30.0, 3.5))),
    ]
    assert output.describe_scaling(results).endswith(
        "2 x 64 px take 3.00 times as long as 1 x 64 px"
    )
    groups = compared_groups(
        BenchSettings(models=["m"], batch_size=[1, 2], parts=["backward", "step"])
    )
    for members in groups:
        for member in members:
            partner = partner_of(member, members)
            assert partner is None or partner.batch_size == member.batch_size


def test_reading_is_compared_with_the_bare_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = torch.Generator().manual_seed(5)
    for number in range(3):
        pixels = torch.randint(256, (500, 400, 3), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number}.jpg")
    options = ["--repeats", "1", "--threads", "0", "--models", f"[{SPECK}]"]
    assert main(["bench", "--data", str(tmp_path), *options]) == DONE
    shown = capsys.readouterr().out
    assert "3 images of 0.2 megapixels, each read 11 times in a round" in shown
    for name in ("bare decoder", "samples", "samples from data.cache", f"steps of {SPECK}"):
        assert re.search(rf"\n  {name} +\d+\.\d images/s \(spread \d+%\)", shown)
    tiff = re.search(r"crops of \d+ px of a TIFF of 8000 .* (\d+) times the rate", shown)
    assert tiff is not None
    assert int(tiff[1]) >= 20


def test_a_folder_without_images_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--data", str(tmp_path), "--threads", "0"]) == MISTAKE
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "0"], "--repeats: got 0, expected 1 or more"),
        (["--models", "[convnextv2_atom]"], "'convnextv2_atom' is not a ConvNeXt of timm"),
        (["--ratios", "[1.0]"], "--ratios: got 1.0, expected 0 to below 1"),
        (["--ratios", "[0]"], "at 0 nothing is hidden"),
        (["--ratios", "[]"], "--ratios: got an empty list"),
        (["--image_size", "100"], "--image_size: got 100 px, expected a multiple of 32"),
        (["--image_size", "[64, 100]"], "--image_size: got 100 px, expected a multiple of 32"),
        (["--batch_size", "[]"], "--batch_size: got an empty list"),
        (["--batch_size", "[4, 0]"], "--batch_size: got 0, expected 1 or more"),
        (["--batch", "3"], "Did you mean --batch_size"),
        (["--device", "tpu"], "got 'tpu', expected auto, cpu, cuda"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == MISTAKE
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["bench", "--output", str(tmp_path / "file" / "bench")]) == MISTAKE
    assert "cannot be made (Not a directory); name another folder" in capsys.readouterr().err


def test_features_of_whole_images_are_compared_with_timms_own_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[object] = []
    run_block = native.run_block
    monkeypatch.setattr(
        "sparse.whole.run_block", lambda *given: (computed.append(1), run_block(*given))[1]
    )
    settings = BenchSettings(
        models=["convnextv2_atto"], parts=["evaluation"], batch_size=1, image_size=64, repeats=1
    )
    (group,) = compared_groups(settings)
    mine, timms = group
    assert (mine.contender, timms.contender) == ("native", "dense")
    assert (mine.ratio, timms.ratio) == (0, 0)
    assert partner_of(mine, group) == timms
    assert partner_of(timms, group) is None
    prepare(timms, CPU)()
    assert computed == []
    prepare(mine, CPU)()
    assert bool(computed) == (missing_kernels() is None)
    forward = subject(part="forward", ratio=0.0)
    prepare(forward, CPU)()
    assert counted_flops(mine) == counted_flops(forward)


@pytest.mark.slow
def test_starting_is_measured_to_the_end_of_the_first_step() -> None:
    told: list[str] = []
    few = ["--train.batch_size=4"]  # with as many as it takes itself it holds 1.8 GB
    clock, computing = measure_starting(1, files=100, tell=told.append, settings=few)
    assert told == ["making 100 files ..."]
    assert 0 < computing.median < clock.median + 5  # clocks of processes tick coarsely
    said = describe_starting(clock, computing, files=100)
    assert said.startswith("fcmae pretrain on 100 files ends its first step ")


def test_a_pretraining_that_cannot_start_is_told() -> None:
    with pytest.raises(DataError, match="bench: the pretraining failed: "):
        measure_starting(1, files=0, tell=lambda _: None)
