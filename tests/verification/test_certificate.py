"""The certificate holds for sound encoders and fails for every sabotaged one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from backend_contract import small_convnext
from safetensors.torch import load_file
from tiny_run import STEP, make_config, make_run
from torch import Tensor

from fcmae.__main__ import main
from fcmae.cli import verify as verify_command
from fcmae.errors import DONE, FAILED, MISTAKE
from fcmae.model.autoencoder import FCMAE, create_model
from fcmae.model.decoder import Decoder
from fcmae.settings.pretrain import PretrainConfig
from fcmae.verification import claims, reference
from fcmae.verification.certificate import Certificate, Line
from fcmae.verification.subjects import randomize, verify_config
from sparse import BackendUnavailableError
from sparse import encoder as sparse_encoder
from sparse.backends import masked_dense, native
from sparse.ops import depthwise_compiled
from sparse.sites import Canvas


@pytest.fixture(autouse=True)
def no_minkowski(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without MinkowskiEngine, which takes longer than all the rest."""

    def refuse(dense: object) -> None:
        raise BackendUnavailableError("MinkowskiEngine is not installed.")

    monkeypatch.setattr(sparse_encoder.minkowski, "MinkowskiConvNeXt", refuse)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    """Settings of a shallow atto: two blocks, three downsampling layers, 64 x 96 px."""

    def shallow(name: str, *, in_chans: int, stem_stride: int = 4, **other: object) -> object:
        return small_convnext(
            in_chans=in_chans, patch_size=stem_stride, dims=(12, 10, 14, 16), depths=(1, 1, 1, 1)
        ).float()

    def without_timm(name: str, checkpoint_path: str, in_chans: int, **other: object) -> object:
        model = shallow(name, in_chans=in_chans)
        model.load_state_dict(load_file(checkpoint_path))
        return model

    monkeypatch.setattr("fcmae.model.autoencoder.create_backbone", shallow)
    monkeypatch.setattr("fcmae.weights.encoder_info.create_backbone", shallow)
    monkeypatch.setattr(claims.timm, "create_model", without_timm)
    return make_config(tmp_path / "run")


def failed_claims(certificate: Certificate) -> list[str]:
    return [line.claim for line in certificate.lines if line.status == "FAILS"]


def test_a_sound_encoder_holds_every_claim(config: PretrainConfig) -> None:
    certificate = verify_config(config)
    assert failed_claims(certificate) == []
    assert certificate.holds
    claimed = " ".join(line.claim for line in certificate.lines)
    for words in (
        "native = reference, float64: features",
        "masked_dense = reference, float32: gradients",
        "native = reference, bf16: features",
        "masked_dense = reference, bf16: features",
        "decoder = reference, float64: predictions",
        "decoder = reference, float32: gradients",
        "hidden pixels replaced, native",
        "change of predictions",
        "gradient of features by hidden pixels",
        "other images and masks replaced, masked_dense",
        "all visible = dense timm model, float64",
        "exported file in timm",
    ):
        assert words in claimed
    not_run = [line for line in certificate.lines if line.status == "not run"]
    assert [(line.claim, line.note) for line in not_run] == [
        ("minkowski = native", "MinkowskiEngine is not installed.")
    ]


def test_each_precision_is_held_to_a_bound_of_its_own(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {line.claim: line.bound for line in verify_config(config).lines}
    features = [f"native = reference, {name}: features" for name in ("float64", "float32", "bf16")]
    assert [bounds[claim] for claim in features] == [1e-10, 1e-5, 5e-2]

    # Products that lose half of their bits are what bf16 is allowed, and float32 is not.
    run_backend = claims.run_backend

    def rounded(case: claims.Case, *how: Any) -> claims.Results:
        found = run_backend(case, *how)
        return found._replace(features=found.features.bfloat16().to(found.features.dtype))

    monkeypatch.setattr(claims, "run_backend", rounded)
    failed = failed_claims(verify_config(config))
    assert features[:2] == [claim for claim in failed if claim in features]


def test_a_device_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--model.name", "convnextv2_atto", "--device", "cuda:99"]) == MISTAKE
    assert "--device: " in capsys.readouterr().err
    assert main(["verify", "--model.name", "convnextv2_atto", "--device", "tpu"]) == MISTAKE
    expected = "--device: got 'tpu', expected auto, cpu, cuda or cuda:N."
    assert expected in capsys.readouterr().err


def test_grn_over_the_batch_shows_its_coupling_as_a_figure(config: PretrainConfig) -> None:
    config = make_config(Path(config.run.dir), grn_scope="batch")
    certificate = verify_config(config)
    assert certificate.holds
    shown = {line.claim: line.measured for line in certificate.lines if line.status == "shown"}
    assert len(shown) == 2
    assert all(figure > 0.01 for figure in shown.values())
    assert any("other images replaced, GRN over the batch" in claim for claim in shown)
    assert any("beside the dense model" in claim for claim in shown)


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("grn_scope", ["image", "batch"])
def test_the_reference_equals_plain_loops(version: int, grn_scope: str) -> None:
    dense = small_convnext(version=version, patch_size=2, kernel_sizes=5, head_norm_first=True)
    rng = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, 64, 96, generator=rng, dtype=torch.float64)
    visible = torch.tensor([[0, 5], [3, 4]])
    found = reference.encode(dense, images, visible, 32, grn_over_batch=grn_scope == "batch")
    expected = naive.encode(dense, images, visible, 32, grn_scope)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def spoil_call(function: Callable[..., Tensor], number: int) -> Callable[..., Tensor]:
    """Return a mask function that hides nothing in its call of that number, counted from 0."""
    calls = 0

    def spoiled(patches: object, x: Tensor) -> Tensor:
        nonlocal calls
        mask = function(patches, x)
        calls += 1
        return torch.ones_like(mask) if (calls - 1) % 8 == number else mask

    return spoiled


@pytest.mark.parametrize("number", [0, 1, 3, 5, 7])
def test_leaving_out_one_mask_of_masked_dense_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The mask of the image, and of each of four stages; downsampling's lie between."""
    monkeypatch.setattr(masked_dense, "active_cells", spoil_call(masked_dense.active_cells, number))
    failed = failed_claims(verify_config(config))
    assert failed
    assert all("masked_dense" in claim or "gradient" in claim for claim in failed)


def test_the_mask_before_a_downsampling_layer_decides_nothing(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches nest: 2 x 2 cells are all visible or all hidden."""
    monkeypatch.setattr(masked_dense, "active_cells", spoil_call(masked_dense.active_cells, 4))
    assert verify_config(config).holds


def test_one_mask_multiplication_before_grn_left_out_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden cells that keep the MLP's bias pollute GRN's sum: the classic mistake."""

    def unmasked(grn: torch.nn.Module, x: Tensor, over_batch: bool) -> Tensor:
        return original(grn, torch.where(x == 0, torch.full_like(x, 0.1), x), over_batch)

    original = masked_dense.apply_grn
    monkeypatch.setattr(masked_dense, "apply_grn", unmasked)
    assert "masked_dense = reference, float64: features" in failed_claims(verify_config(config))


@pytest.mark.parametrize("spoilt_block", [0, 3])
def test_one_grn_sum_over_the_batch_in_native_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, spoilt_block: int
) -> None:
    calls = 0

    def pool_wrongly(*arguments: Tensor, over_batch: bool, **options: Any) -> Tensor:
        nonlocal calls
        is_spoilt = calls % 4 == spoilt_block
        calls += 1
        return original(*arguments, over_batch=is_spoilt or over_batch, **options)

    original = native.global_response_norm
    monkeypatch.setattr(native, "global_response_norm", pool_wrongly)
    failed = failed_claims(verify_config(config))
    assert "native = reference, float64: features" in failed
    assert "other images and masks replaced, native: change of features" in failed


def test_a_decoder_without_its_mask_token_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zero(self: Decoder, dtype: torch.dtype) -> Tensor:
        return 0 * original(self, dtype)

    original = Decoder.token
    monkeypatch.setattr(Decoder, "token", zero)
    failed = failed_claims(verify_config(config))
    assert set(failed) == {claim for claim in failed if claim.startswith("decoder = reference")}
    assert len(failed) == 4


def test_a_decoder_whose_grn_sums_over_the_batch_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pool_wrongly(block: Any, blocks: Tensor, canvas: Canvas) -> Tensor:
        return native.run_block(block, blocks, canvas, grn_over_batch=True)

    monkeypatch.setattr("fcmae.model.decoder.run_block", pool_wrongly)
    assert "decoder = reference, float64: predictions" in failed_claims(verify_config(config))


def test_hidden_cells_that_are_not_zero_in_natives_convolution_fail(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scatter(canvas: Canvas, blocks: Tensor) -> Tensor:
        maps = original(canvas, blocks)
        return torch.where(maps == 0, torch.full_like(maps, 1e-3), maps)

    original = Canvas.scatter
    monkeypatch.setattr(Canvas, "scatter", scatter)
    monkeypatch.setattr(depthwise_compiled, "is_available", lambda blocks: False)
    assert "native = reference, float64: features" in failed_claims(verify_config(config))


def test_an_encoder_that_sees_hidden_pixels_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leak(dense: object, images: Tensor, patches: object, **settings: object) -> Tensor:
        return original(dense, images, patches, **settings) + 1e-12 * images.sum()

    original = native.encode
    monkeypatch.setattr(native, "encode", leak)
    failed = failed_claims(verify_config(config))
    assert "hidden pixels replaced, native: change of features" in failed
    assert "gradient of features by hidden pixels" in failed


def failed_by_invalid_pixels(certificate: Certificate) -> set[str]:
    """What invalid pixels change, of the claims that fail; nothing else may fail."""
    failed = failed_claims(certificate)
    assert all("invalid pixels" in claim for claim in failed), failed
    return {claim.split(": change of ")[-1] for claim in failed}


def test_a_model_that_is_not_told_of_invalid_pixels_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: FCMAE, images: Tensor, visible: Tensor, valid: object = None) -> object:
        return original(self, images, visible)

    original = FCMAE.forward
    monkeypatch.setattr(FCMAE, "forward", forward)
    assert failed_by_invalid_pixels(verify_config(config)) >= {"features", "predictions", "loss"}


def test_a_loss_that_counts_invalid_pixels_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_values(self: FCMAE, valid: Tensor) -> Tensor:
        return torch.ones_like(original(self, valid))

    original = FCMAE.values_with_data
    monkeypatch.setattr(FCMAE, "values_with_data", all_values)
    assert failed_by_invalid_pixels(verify_config(config)) == {
        "gradient of loss by predictions of invalid pixels"
    }


def test_pixels_that_bleed_out_of_holes_when_crops_are_scaled_fail(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearest(valid: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.nn.functional.interpolate(valid[None].float(), size)[0] > 0

    monkeypatch.setattr("fcmae.data.decoding.fill", lambda image, valid: image)
    monkeypatch.setattr("fcmae.data.augmentation.resize_valid", nearest)
    assert failed_by_invalid_pixels(verify_config(config)) >= {"features", "predictions", "loss"}


def test_an_export_of_other_weights_fails(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_other(encoder: torch.nn.Module, path: Path, info: object) -> None:
        with torch.no_grad():
            encoder.stem[0].weight[0] *= 1.001
            claims_export(encoder, path, info)
            encoder.stem[0].weight[0] /= 1.001

    claims_export = claims.export_timm
    monkeypatch.setattr(claims, "export_timm", export_other)
    assert failed_claims(verify_config(config)) == ["exported file in timm = all visible, float32"]


def test_fresh_weights_hide_nothing(config: PretrainConfig) -> None:
    """No parameter stays at a start that makes a layer the identity."""
    model = create_model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    randomize(model, only_grn=False)
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder.head."):
            assert torch.equal(tensor, before[name])
        else:
            assert tensor.std() > 0.02, name


def test_only_grn_of_a_run_is_redrawn(tmp_path: Path) -> None:
    _, model = make_run(tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    randomize(model, only_grn=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".grn." not in name)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (Line("a", 0.0, 0.0), "holds"),
        (Line("a", 1e-12, 0.0), "FAILS"),
        (Line("a", 1e-5, 1e-5), "holds"),
        (Line("a", math.nan, 1e-5), "FAILS"),
        (Line("a", math.inf, 0.0), "FAILS"),
        (Line("a", 0.3), "shown"),
        (Line("a", None, note="why"), "not run"),
    ],
)
def test_a_line_holds_only_within_its_bound(line: Line, status: str) -> None:
    assert line.status == status
    assert Certificate({}, [line]).holds == (status != "FAILS")


def test_the_table_has_a_line_per_claim() -> None:
    rule = "-" * len("second claim   5.0e-01  exactly 0  FAILS  ")
    lines = [Line("first", 2e-16, 1e-10), Line("second claim", 0.5, 0), Line("x", None, note="no.")]
    text = Certificate({"model": "atto"}, lines).to_text()
    assert text == "\n".join(
        [
            "Sparsity certificate",
            "model: atto",
            "",
            "claim         measured      bound",
            rule,
            "first          2.0e-16      1e-10  holds",
            "second claim   5.0e-01  exactly 0  FAILS",
            "x                    -          -  not run",
            "",
            "x: no.",
            "1 of 2 claims fail.",
        ]
    )


def test_differences_are_shares_and_never_hide_nan() -> None:
    one, other = torch.tensor([1.0, -4.0]), torch.tensor([1.0, -5.0])
    assert claims.difference(one, other) == pytest.approx(0.2)
    assert claims.difference(one, other, floor=10.0) == pytest.approx(0.1)
    assert claims.difference(one * 0, one * 0) == 0
    assert claims.difference(one, one * 0) == math.inf
    assert math.isnan(claims.difference(one * math.nan, other))
    assert claims.exact_change(one * math.nan, one) == math.inf
    assert claims.exact_change(one, one) == 0


@pytest.mark.slow
def test_the_command_verifies_a_run_and_prints_for_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    assert main(["verify", str(tmp_path / "run"), "--json"]) == DONE
    plain = json.loads(capsys.readouterr().out)
    assert plain["holds"] is True
    assert f"after {STEP} steps, GRN's redrawn at random" in plain["subject"]["weights"]
    assert {line["status"] for line in plain["lines"]} == {"holds", "not run"}


def fake(monkeypatch: pytest.MonkeyPatch, *lines: Line) -> list[PretrainConfig]:
    """Let the command verify nothing and return these lines; return the configs it asks for."""
    asked: list[PretrainConfig] = []

    def verify(config: PretrainConfig, device: torch.device) -> Certificate:
        assert device.type == "cpu"
        asked.append(config)
        return Certificate({}, list(lines))

    monkeypatch.setattr("fcmae.verification.subjects.verify_config", verify)
    return asked


def test_the_command_takes_settings_with_or_without_a_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = fake(monkeypatch, Line("a", 0.0, 0.0))
    assert main(["verify", "--config", "configs/quickstart.yaml", "--data.in_chans", "5"]) == DONE
    settings = ["--model.name", "convnextv2_tiny", "--grn-scope", "batch", "--mask.ratio", "0.7"]
    assert main(["verify", *settings]) == DONE
    assert main(["verify", "--grn-scope=image", "--json"]) == DONE
    recipe = ["--config", "configs/pretrain/femto.yaml"]  # which names no images
    assert main(["verify", *recipe]) == DONE
    assert asked.pop().model.name == "convnextv2_femto"
    assert asked[0].data.in_chans == 5
    assert asked[1].model.name == "convnextv2_tiny"
    assert [config.model.grn_scope for config in asked] == ["image", "batch", "image"]
    assert "All 1 claims hold." in capsys.readouterr().out


def test_exit_status_is_1_when_a_claim_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, Line("a", 0.0, 0.0), Line("b", math.inf, 0.0))
    assert main(["verify"]) == FAILED
    assert "1 of 2 claims fail." in capsys.readouterr().out
    assert main(["verify", "--json"]) == FAILED
    assert json.loads(capsys.readouterr().out)["lines"][1]["measured"] == "inf"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grn-scope", "patch"], "--grn-scope: got 'patch', expected image or batch"),
        (["--grn-scope"], "command line: --grn-scope has no value"),
        (["nowhere"], "'nowhere' is no folder"),
        (["run", "--mask.ratio", "0.5"], "got '--mask.ratio' beside the run 'run'"),
        (["--mask.rato", "0.5"], "unknown setting 'mask.rato'. Did you mean mask.ratio"),
        (["--mask.ratio", "0.999"], "mask.ratio"),
        (["--model.name", "convnext_atto_ols", "--data.image_size", "64"], "stem"),
    ],
)
def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["verify", *arguments]) == MISTAKE
    out, error = capsys.readouterr()
    assert not out
    assert message in error
    assert error.count("\n") == 1


def test_help_explains_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--help"]) == DONE
    assert verify_command._HELP in capsys.readouterr().out
