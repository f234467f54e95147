"""Runs weights before and after a conversion on the same images, each as its own layout says."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fcmae.errors import BackendUnavailableError, CheckpointError
from fcmae.weights.authors_model import AuthorsModel
from fcmae.weights.conversion import State, Weights, read_weights, write_weights
from fcmae.weights.structure import Structure
from sparse import SparseConvNeXt

TOLERANCE = 1e-5  # share of the largest value; the same sums in another order, float32
Outputs = dict[str, Tensor]


@torch.no_grad()
def compare_models(before: State, source: str, after: State, to: str) -> str:
    """Run both and return a sentence with the largest difference.

    The model of each layout is that of its own library: timm, transformers, MinkowskiEngine where
    it is installed, and for the authors' names a reading of them that shares nothing with the
    converter's tables.

    Raises:
        CheckpointError: a difference above TOLERANCE times the largest value.
        BackendUnavailableError: transformers is needed and not installed.
    """
    weights = read_weights(before, source)
    images, is_masked = _inputs(weights.structure)
    with torch.random.fork_rng(devices=[]):  # building models draws weights that nobody uses
        expected = run_layout(before, source, weights, images, is_masked)
        found = run_layout(after, to, weights, images, is_masked)
        minkowski = _minkowski_proof(after, to, weights, images)
    largest = largest_difference(expected, found, f"the {to} model", f"the {source} model")
    outputs = " and ".join(name for name in expected if name in found)
    sentence = (
        f"both models ran on {len(images)} random images of {images.shape[2]} x {images.shape[3]} "
        f"px; the largest difference of {outputs} is {largest:.1e} of the largest value."
    )
    return sentence + minkowski


def largest_difference(
    expected: Outputs, found: Outputs, of: str, to: str, tolerance: float | None = None
) -> float:
    """Return the largest difference of what both have, each as a share of its largest value.

    Args:
        expected, found: tensors of equal shapes by name.
        of, to: which model `found` is of, and `expected`, for the message.
        tolerance: the largest share that is accepted; None: TOLERANCE.

    Raises:
        CheckpointError: a difference above the tolerance, or one that is not a number.
    """
    largest = 0.0
    tolerance = TOLERANCE if tolerance is None else tolerance
    for name in (name for name in expected if name in found):
        gap = float((expected[name] - found[name]).abs().max())
        scale = float(expected[name].abs().max())
        if not gap <= tolerance * scale:  # also when it is NaN
            raise CheckpointError(
                f"export: {name} of {of} differ by {gap:.3g} from those of {to} on random images, "
                f"expected {tolerance * scale:.2g} at most; nothing was written. Weights that are "
                "not finite cause this: look at the run's loss."
            )
        largest = max(largest, gap / scale if scale else 0.0)
    return largest


def run_layout(
    state: State, name: str, weights: Weights, images: Tensor, is_masked: Tensor
) -> Outputs:
    """Return features, logits and prediction of the cells, as far as the layout has them.

    Args:
        state: weights in the layout.
        name: of the layout.
        weights: the same ones in the common form, for what is not read from `state`.
        images: [N, C, H, W].
        is_masked: bool [N, 1, H, W] on the last feature map, for the decoder.
    """
    run: Callable[[State, Structure, Tensor, Tensor], Outputs] = _run_authors
    if name in ("timm", "fcmae"):
        run = _run_timm
    elif name == "huggingface":
        run = _run_huggingface
    return run(state, weights.structure, images, is_masked)


def _inputs(structure: Structure) -> tuple[Tensor, Tensor]:
    """Two random images of 2 x 3 cells, and which cells the decoder takes for hidden."""
    rng = torch.Generator().manual_seed(0)
    side = structure.total_stride
    images = torch.randn(2, structure.in_chans, 2 * side, 3 * side, generator=rng)
    return images, torch.rand(2, 1, 2, 3, generator=rng) < 0.5


def _run_timm(state: State, structure: Structure, images: Tensor, is_masked: Tensor) -> Outputs:
    model = structure.build().eval()
    encoder = {name: tensor.float() for name, tensor in state.items()}
    if structure.decoder is not None and any(n.startswith("encoder.") for n in state):
        encoder = _below("encoder.", encoder)
    has_norm = "head.norm.weight" in encoder or structure.final_norm == "norm_pre"
    model.load_state_dict(encoder, strict=has_norm)
    features = model.forward_features(images)
    outputs = {"features": features}
    if structure.num_classes is not None:
        outputs["logits"] = model.forward_head(features)
    decoder_state = _below("decoder.", state)
    if structure.decoder is not None and decoder_state:
        decoder = structure.decoder.build(structure.dims[-1])
        decoder.load_state_dict(decoder_state)
        prediction = decoder.float()(features, is_masked)
        outputs["predictions"] = prediction.permute(0, 3, 1, 2)
    return outputs


def _run_authors(state: State, structure: Structure, images: Tensor, is_masked: Tensor) -> Outputs:
    model = AuthorsModel(state)
    features = model.features(images)
    outputs = {
        "features": features,
        "logits": model.logits(features),
        "predictions": model.prediction(features, is_masked),
    }
    return {name: output for name, output in outputs.items() if output is not None}


def _run_huggingface(
    state: State, structure: Structure, images: Tensor, is_masked: Tensor
) -> Outputs:
    from fcmae.weights.export_huggingface import build_model

    model = build_model(structure)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    output = model.eval()(pixel_values=images, output_hidden_states=True)
    outputs = {"features": output.hidden_states[-1]}
    return outputs | ({"logits": output.logits} if structure.num_classes is not None else {})


def _minkowski_proof(after: State, to: str, weights: Weights, images: Tensor) -> str:
    """Load a sparse layout into MinkowskiEngine's layers and compare on visible patches."""
    if to not in ("authors-sparse", "authors-fcmae"):
        return ""
    from sparse.backends import minkowski
    from sparse.sites import VisiblePatches

    dense = weights.structure.build()
    state = write_weights(weights, "timm")
    dense.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    try:
        twin = minkowski.MinkowskiConvNeXt(dense)
    except BackendUnavailableError as error:
        reason = "not installed" if "not installed" in str(error) else "broken"
        return (
            f" MinkowskiEngine is {reason}, so its own layers did not run; the kernels were laid "
            "out place by place."
        )
    encoder = _below("encoder.", after) if to == "authors-fcmae" else after
    twin.load_state_dict({name: tensor.float() for name, tensor in encoder.items()}, strict=True)
    visible = torch.tensor([[0, 4], [2, 5]])
    expected = SparseConvNeXt(dense.eval())(images, visible)
    patches = VisiblePatches.from_indices(visible, 2, 3)
    found = twin.eval()(images, patches, False)
    gap = float((expected - found).abs().max() / expected.abs().max())
    if not gap <= TOLERANCE:
        raise CheckpointError(
            f"convert: MinkowskiEngine's layers with the {to} weights differ by {gap:.3g} of "
            "the largest value from the native encoder on masked images; nothing was written."
        )
    return f" MinkowskiEngine's own layers on masked images differ by {gap:.1e}."


def _below(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
