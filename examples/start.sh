#!/usr/bin/env bash
# The start page, command by command: from photographs to features, then the same for your own folder.
# Needs pip install 'fcmae[quickstart]'.
set -euo pipefail

# [repository]
python pretrain.py --config configs/quickstart.yaml
# [pretrain]
fcmae pretrain --config quickstart
# [embed]
fcmae embed runs/quickstart elpv --output features.npz
# [probe]
fcmae probe runs/quickstart elpv --save probe.safetensors
# [export]
fcmae export runs/quickstart --to timm-folder
# [own]
fcmae pretrain --run.dir runs/mine --data.path /path/to/images --train.time 20min
# [inspect]
fcmae inspect /path/to/images --write my.yaml
fcmae pretrain --config my.yaml
# [finetune]
fcmae finetune --run.dir runs/mine-finetune --data.path /path/to/labelled \
    --model.weights runs/mine
# [predict]
fcmae predict runs/mine-finetune /path/to/new/images --output predictions.csv
# [curate]
fcmae curate runs/mine /path/to/images --output curation
