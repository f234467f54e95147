"""State dicts go from layout to layout bit for bit, and nothing incomplete passes."""

from __future__ import annotations

import pytest
import timm
import torch
from authors_weights import (
    assert_same_state,
    dense_encoder,
    narrow,
    randomized,
    sparse_encoder,
    sparse_fcmae,
    sparse_kernel,
)

import fcmae
from fcmae.convert import convert_state_dict
from fcmae.errors import CheckpointError, ConfigError
from fcmae.finetuning.setup import create_classifier
from fcmae.model.autoencoder import FCMAE
from fcmae.weights.conversion import detect
from fcmae.weights.formats import FORMAT_NAMES
from fcmae.weights.loading import load_encoder

State = dict[str, torch.Tensor]


def encoder_only(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def test_authors_sparse_weights_go_to_timm_and_back_bit_for_bit() -> None:
    model = narrow()
    sparse = sparse_encoder(model)
    converted = convert_state_dict(sparse, to="timm")
    assert_same_state(encoder_only(converted), encoder_only(model.state_dict()))
    assert_same_state(convert_state_dict(converted, to="authors-sparse"), sparse)


def test_the_kernels_of_this_test_are_not_symmetric() -> None:
    weight = narrow().stages[1].downsample[1].weight.detach()
    assert not torch.equal(sparse_kernel(weight), sparse_kernel(weight.transpose(2, 3)))


def test_authors_dense_weights_go_to_sparse_and_back_bit_for_bit() -> None:
    model = narrow()
    dense = dense_encoder(model)
    sparse = convert_state_dict(dense, to="authors-sparse")
    assert_same_state(sparse, sparse_encoder(model))
    assert_same_state(convert_state_dict(sparse, to="authors-dense"), dense)


@pytest.mark.parametrize("conv_mlp", [False, True])
def test_a_whole_training_checkpoint_goes_to_fcmae_and_back(conv_mlp: bool) -> None:
    whole = sparse_fcmae(narrow(conv_mlp=conv_mlp))
    ours = convert_state_dict(whole, to="fcmae")
    assert torch.equal(ours["decoder.projection.weight"], whole["proj.weight"])
    assert torch.equal(ours["decoder.blocks.0.mlp.grn.bias"], whole["decoder.0.grn.beta"].view(-1))
    assert_same_state(convert_state_dict(ours, to="authors-fcmae"), whole)


def test_our_whole_model_survives_the_authors_layout() -> None:
    model = FCMAE("convnextv2_atto", image_size=64, decoder_dim=8, in_chans=1)
    state = model.state_dict()
    theirs = convert_state_dict(state, to="authors-fcmae")
    assert len(theirs) == 151  # as the authors' own atto
    assert theirs["decoder.0.grn.gamma"].shape == (1, 1, 1, 32)
    assert theirs["encoder.stages.0.0.grn.gamma"].shape == (1, 160)
    assert_same_state(convert_state_dict(theirs, to="fcmae"), state)


@pytest.mark.parametrize("to", ["timm", "authors-dense", "huggingface"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_classifier_goes_along(to: str, version: int) -> None:
    state = narrow(version=version, num_classes=4).state_dict()
    converted = convert_state_dict(state, to=to)
    assert detect(converted) == to
    assert_same_state(convert_state_dict(converted, to="timm"), state)


def test_names_of_every_layout() -> None:
    state = narrow(num_classes=4).state_dict()
    dense = convert_state_dict(state, to="authors-dense")
    assert torch.equal(dense["head.weight"], state["head.fc.weight"])
    assert torch.equal(dense["norm.bias"], state["head.norm.bias"])
    hub = convert_state_dict(state, to="huggingface")
    layer = "convnextv2.encoder.stages.1.layers.1"
    assert torch.equal(
        hub[f"{layer}.grn.weight"].view(-1), state["stages.1.blocks.1.mlp.grn.weight"]
    )
    assert torch.equal(hub["classifier.bias"], state["head.fc.bias"])
    first_version = convert_state_dict(narrow(version=1).state_dict(), to="huggingface")
    assert "encoder.stages.3.layers.0.layer_scale_parameter" in first_version


@pytest.mark.parametrize(
    "settings",
    [
        {"version": 1},
        {"patch_size": 2},
        {"patch_size": 1},
        {"kernel_sizes": (3, 5, 7, 9)},
        {"conv_bias": False},
        {"in_chans": 7},
        {"dims": (4, 4, 4, 4)},
        {"head_norm_first": True},
    ],
    ids=str,
)
def test_every_structure_goes_to_sparse_and_back(settings: dict[str, object]) -> None:
    state = narrow(**settings).state_dict()
    sparse = convert_state_dict(state, to="authors-sparse")
    assert detect(sparse) == "authors-sparse"
    assert_same_state(encoder_only(convert_state_dict(sparse, to="timm")), encoder_only(state))


@pytest.mark.parametrize("name", ["atto", "femto", "pico", "nano", "tiny"])
def test_timm_loads_converted_variants_strictly(name: str) -> None:
    model = timm.create_model(f"convnextv2_{name}", num_classes=0)
    for source in ("authors-dense", "authors-sparse", "huggingface"):
        foreign = convert_state_dict(model.state_dict(), to=source)
        assert_same_state(convert_state_dict(foreign, to="timm"), model.state_dict())


@pytest.mark.parametrize("shape", [(-1,), (1, -1), (1, 1, 1, -1)])
def test_grn_of_every_known_shape_is_understood(shape: tuple[int, ...]) -> None:
    model = narrow()
    converted = convert_state_dict(dense_encoder(model, shape), to="timm")
    assert_same_state(encoder_only(converted), encoder_only(model.state_dict()))


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_converting_twice_changes_nothing_more(name: str) -> None:
    once = convert_state_dict(convert_state_dict(sparse_fcmae(narrow()), to="fcmae"), to=name)
    assert_same_state(convert_state_dict(once, to=name), once)
    assert detect(once) == name


def test_a_norm_that_was_never_trained_starts_at_one_and_zero() -> None:
    converted = convert_state_dict(sparse_encoder(narrow()), to="timm")
    assert converted["head.norm.weight"].eq(1).all()
    assert converted["head.norm.bias"].eq(0).all()


def test_half_precision_stays_half() -> None:
    state = {name: tensor.half() for name, tensor in narrow().state_dict().items()}
    sparse = convert_state_dict(state, to="authors-sparse")
    assert {tensor.dtype for tensor in sparse.values()} == {torch.float16}


def test_it_is_public() -> None:
    assert fcmae.convert_state_dict is convert_state_dict
    assert "convert_state_dict" in fcmae.__all__


def spoiled(name: str, change: str) -> State:
    state = sparse_encoder(narrow())
    if change == "transposed":
        state[name] = state[name].transpose(-1, -2)
    elif change == "missing":
        del state[name]
    elif change == "extra":
        state[name] = torch.zeros(2)
    else:
        state[name] = state[name][..., :-1]
    return state


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("stages.1.0.dwconv.kernel", "transposed", r"got \[5, 49\], expected \[49, 5\]"),
        ("downsample_layers.2.1.kernel", "transposed", r"got \[4, 6, 5\], expected \[4, 5, 6\]"),
        ("stages.2.0.pwconv2.linear.weight", "transposed", r"got \[24, 6\], expected \[6, 24\]"),
        ("stages.1.1.grn.beta", "missing", r"1 missing: stages.1.1.grn.beta\)"),
        ("downsample_layers.0.0.weight", "missing", r"1 missing: downsample_layers.0.0.weight\)"),
        ("stages.1.1.norm.ln.weight", "missing", r"1 missing: stages.1.1.norm.ln.weight\)"),
        ("stages.0.0.extra.kernel", "extra", r"1 unexpected: stages.0.0.extra.kernel\)"),
        ("stages.3.0.norm.ln.bias", "cut", r"norm.ln.bias \(got \[7\], expected \[8\]\)"),
        ("stages.1.0.grn.gamma", "cut", r"grn.gamma \(got \[1, 19\], expected \[1, 20\]\)"),
    ],
)
def test_an_entry_that_is_wrong_is_named(name: str, change: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        convert_state_dict(spoiled(name, change), to="timm")
    assert name in str(raised.value)


def test_every_wrong_entry_is_listed_at_once() -> None:
    state = sparse_encoder(narrow())
    del state["stages.0.0.dwconv.bias"], state["stages.3.0.pwconv1.linear.bias"]
    state |= {"pred.weight": torch.zeros(1), "lnorm": torch.zeros(1)}
    state["stages.2.0.dwconv.kernel"] = torch.zeros(7, 7, 6)
    with pytest.raises(CheckpointError) as raised:
        convert_state_dict(state, to="timm")
    message = str(raised.value)
    assert "2 missing: stages.0.0.dwconv.bias, stages.3.0.pwconv1.linear.bias;" in message
    assert "2 unexpected: pred.weight, lnorm;" in message
    assert "1 of a wrong shape: stages.2.0.dwconv.kernel (got [7, 7, 6], expected" in message


def test_a_name_that_merely_contains_a_known_part_is_unexpected() -> None:
    state = dense_encoder(narrow()) | {"stages.0.0.my_ln_linear.grn.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: stages.0.0.my_ln_linear.grn.weight"):
        convert_state_dict(state, to="authors-sparse")


def test_what_is_no_convnext_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no known layout \(they begin layer1.weight\)"):
        convert_state_dict({"layer1.weight": torch.zeros(1)}, to="timm")
    with pytest.raises(CheckpointError, match="no known layout"):
        convert_state_dict({}, to="timm")
    with pytest.raises(CheckpointError, match=r"'model' is a OrderedDict.*checkpoint\['model'\]"):
        convert_state_dict({"model": narrow().state_dict()}, to="timm")  # type: ignore[dict-item]


def test_unknown_formats_are_the_users_mistake() -> None:
    state = narrow().state_dict()
    with pytest.raises(ConfigError, match="to: got 'tim', expected one of fcmae, timm, authors-d"):
        convert_state_dict(state, to="tim")
    with pytest.raises(ConfigError, match="from: got 'x', expected one of"):
        convert_state_dict(state, to="timm", source="x")


def test_a_source_that_is_named_is_believed() -> None:
    with pytest.raises(CheckpointError, match="not a complete authors-dense layout"):
        convert_state_dict(narrow().state_dict(), to="timm", source="authors-dense")


def test_parts_that_cannot_go_along_are_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"no decoder .missing: mask_token, proj.weight"):
        convert_state_dict(narrow().state_dict(), to="authors-fcmae")
    with pytest.raises(CheckpointError, match=r"authors-dense has no place for norm_pre.weight"):
        convert_state_dict(narrow(head_norm_first=True).state_dict(), to="authors-dense")
    with pytest.raises(CheckpointError, match=r"huggingface has no place for stages.0.downsample"):
        convert_state_dict(narrow(patch_size=2).state_dict(), to="huggingface")
    headless = {n: t for n, t in sparse_fcmae(narrow()).items() if n.startswith("encoder.")}
    with pytest.raises(CheckpointError, match=r"5 missing: mask_token, proj.weight, pred.weight"):
        convert_state_dict(headless, to="timm")


@pytest.mark.parametrize("grn_shape", [(1, -1), (1, 1, 1, -1)])
def test_released_encoders_load_into_pretraining(tmp_path, grn_shape: tuple[int, ...]) -> None:
    source = randomized(timm.create_model("convnextv2_atto", num_classes=0))
    path = tmp_path / "convnextv2_atto_1k_224_fcmae.pt"
    torch.save({"model": dense_encoder(source, grn_shape)}, path)
    model = FCMAE("convnextv2_atto", image_size=64, decoder_dim=8)
    assert load_encoder(model.encoder, path) == []
    found, expected = model.encoder.state_dict(), source.state_dict()
    assert_same_state(encoder_only(found), encoder_only(expected))


def test_released_encoders_load_into_fine_tuning(tmp_path) -> None:
    from settled import settled

    from fcmae.settings.finetune import FinetuneConfig, FinetuneDataConfig, FinetuneModelConfig
    from fcmae.settings.sections import RunConfig, TrainConfig

    source = randomized(timm.create_model("convnextv2_atto", num_classes=0))
    path = tmp_path / "convnextv2_atto_1k_224_fcmae.pt"
    torch.save({"model": dense_encoder(source)}, path)
    config = FinetuneConfig(
        run=RunConfig(dir=str(tmp_path / "run")),
        data=FinetuneDataConfig(path="images"),
        train=TrainConfig(steps=1),
        model=FinetuneModelConfig(name="convnextv2_atto", weights=str(path)),
    )
    model, told = create_classifier(settled(config), ("a", "b", "c"))
    assert told == []
    assert model.head.fc.out_features == 3
    assert_same_state(encoder_only(model.state_dict()), encoder_only(source.state_dict()))
