"""`fcmae.convert.convert_state_dict`: the weights of a ConvNeXt from one layout into another.

The tables of the layouts, and everything about files, are in fcmae/weights/.
"""

from collections.abc import Mapping

from torch import Tensor

from fcmae.weights.conversion import State, check_format, detect, read_weights, write_weights


def convert_state_dict(state: Mapping[str, Tensor], *, to: str, source: str = "auto") -> State:
    """Return the weights of a ConvNeXt in another layout, bit for bit the same values.

    What the other layout has no place for is left out: the decoder outside `fcmae` and
    `authors-fcmae`, the classifier and the norm before it in the sparse layouts. A final norm that
    is asked for and was never trained starts at 1 and 0. Tensors may share memory with `state`.

    Args:
        state: tensor by name; not changed.
        to: fcmae, timm, authors-dense, authors-sparse, authors-fcmae or huggingface.
        source: one of these, or `auto` to tell by names and shapes.

    Raises:
        ConfigError: an unknown format.
        CheckpointError: missing, unexpected or mis-shaped entries, all of them listed; no known
            layout; a part that the target needs and the source lacks, or cannot hold.
    """
    check_format(to, "to")
    found = read_weights(state, detect(state) if source == "auto" else source)
    return write_weights(found, to)
