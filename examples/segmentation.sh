#!/usr/bin/env bash
# From a folder of images to a segmentation model, and whether pretraining was worth it; some minutes
# on two cores. Needs pip install 'fcmae[segmentation]' and the pictures of pasted_photographs.py:
#
#     bash examples/segmentation.sh pasted runs/pasted
set -euo pipefail
pictures=$1 runs=$2

# 1. Pretrain on the images alone.
fcmae pretrain --run.dir "$runs/pretraining" --data.path "$pictures/train/images" \
    --data.image_size 128 --model.name convnextv2_atto --train.batch_size 32 --train.steps 150

# 2. Train masks from it, and the same from scratch, with three seeds each.
masks=(
    --data.path "$pictures/train/images" --data.masks "$pictures/train/masks"
    --data.val_path "$pictures/val/images" --data.val_masks "$pictures/val/masks"
    --data.classes "[background, animal, plant, thing]" --data.image_size 128
    --task.architecture fpn --task.decoder_channels 64
    --train.batch_size 8 --train.steps 90
)
fcmae finetune --task segmentation --run.dir "$runs/masks" --model.weights "$runs/pretraining" \
    "${masks[@]}" --compare.scratch true --compare.seeds 3

# 3. Masks of new pictures, and the model for others.
segmenter=$runs/masks/pretrained-0
fcmae predict "$segmenter" "$pictures/val/images" --output "$runs/predictions"
fcmae export "$segmenter" --to onnx
