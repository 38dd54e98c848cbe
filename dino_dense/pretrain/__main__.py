"""Train a DINO backbone on a folder of images or videos; without --data, on rendered images."""

import signal

from data.pretraining import open_pretraining_data
from data.sample import sample_data
from dino_dense import distributed
from dino_dense.config import command_line
from dino_dense.pretrain import objectives
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.trainer import Trainer


def main() -> int:
    """Parse, build, train.

    Returns:
        The exit status: 0, also after an early end by SIGTERM (a preempted machine): the run is saved, and the last
        line says how to resume. 128 + the number of any other signal.
    """
    config_type = objectives.with_options(PretrainConfig)
    config = command_line.parse(config_type, prog="python -m dino_dense.pretrain", description=__doc__ or "")
    with distributed.session(config.device) as (world, device):
        root = config.data or sample_data().images / "train"
        images = open_pretraining_data(root, config.frame_stride, config.frames_per_video)
        outcome = Trainer(config, images, world, device).train()
    return 128 + outcome.signal if outcome.signal not in (None, signal.SIGTERM) else 0


if __name__ == "__main__":
    command_line.run(main)
