"""How badly a pretraining reconstructs each picture: what surprises it most is worth a look."""

import torch
from torch import Tensor

from fcmae.model.autoencoder import FCMAE
from fcmae.model.loss import reconstruction_loss
from fcmae.model.masking import draw_visible, num_visible_patches

DRAWS = 4  # of masks: of 60 % hidden patches all but 3 in 100 are scored once at least


class ImageLosses:
    """Describes pictures by their mean reconstruction loss over DRAWS masks, [N, 1].

    The masks are the same for every picture without holes, so that pictures are compared by what
    they show, and a picture's loss does not depend on those beside it.

    Args:
        model: of a pretraining, in evaluation mode.
        seed: of the masks.
    """

    def __init__(self, model: FCMAE, seed: int = 0) -> None:
        self._model = model
        self._seed = seed

    def __call__(self, images: Tensor, valid: Tensor | None) -> Tensor:
        """Return the losses of images [N, C, H, W]; NaN where too little of one has data.

        Args:
            images: normalised, on the model's device.
            valid: bool [N, 1, H, W], False where an image has no data; None where all have.
        """
        losses = torch.full((len(images), 1), torch.nan)
        model = self._model
        if valid is None:
            rows, patches = torch.arange(len(images)), None
        else:
            needed = num_visible_patches(model.num_patches, model.mask_ratio) + 1
            every = model.valid_patches(valid).cpu()
            rows = (every.sum(dim=1) >= needed).nonzero().squeeze(1)
            patches, valid = every[rows], valid[rows]
        if not len(rows):
            return losses
        chosen = images[rows]
        generator = torch.Generator().manual_seed(self._seed)
        drawn = [self._losses(chosen, valid, patches, generator) for _ in range(DRAWS)]
        losses[rows, 0] = torch.stack(drawn).mean(dim=0).cpu()
        return losses

    def _losses(
        self,
        images: Tensor,
        valid: Tensor | None,
        patches: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the losses [N] under one draw of masks."""
        model = self._model
        seed = int(torch.randint(2**31, (1,), generator=generator))
        again = torch.Generator()

        def draw(chosen: Tensor | None) -> Tensor:
            again.manual_seed(seed)
            return draw_visible(1, model.num_patches, model.mask_ratio, again, chosen)

        if patches is None:
            visible = draw(None).expand(len(images), -1)
        else:
            visible = torch.cat([draw(row[None]) for row in patches])
        out = model(images, visible, valid=valid)
        target, is_value = model.targets(images, out.hidden, valid)
        return torch.stack(
            [
                reconstruction_loss(
                    out.hidden_prediction[row, None],
                    target[row, None],
                    is_value=None if is_value is None else is_value[row, None],
                )
                for row in range(len(images))
            ]
        )
