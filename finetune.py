"""Fine-tune a classifier: `python finetune.py --config configs/quickstart_finetune.yaml`."""

import sys

from fcmae.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("finetune", sys.argv[1:]))
