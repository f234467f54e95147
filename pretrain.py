"""Pretrain an encoder: `python pretrain.py --config configs/quickstart.yaml`."""

import sys

from fcmae.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("pretrain", sys.argv[1:]))
