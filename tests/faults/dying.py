"""`python -m dino_dense.pretrain` in several processes; the second dies in its first life, in the middle of a step."""

import os

import torch

from dino_dense.config import command_line
from dino_dense.pretrain.__main__ import main
from tests.faults.killing import Kill, arm

if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ["RANK"] == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        arm(Kill("step", 5, 0.0))
    command_line.run(main)
