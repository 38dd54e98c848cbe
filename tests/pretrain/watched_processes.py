"""`python -m dino_dense.pretrain` whose measurements take no time: equal to the start until step 2, then worse."""

from pathlib import Path

import pandas as pd
import torch

from dino_dense.config import command_line
from dino_dense.pretrain import trainer
from dino_dense.pretrain.__main__ import main
from dino_dense.pretrain.watch import COLUMNS, WORSE, Watcher


class KnownWatcher(Watcher):
    """Gives a row without a measurement."""

    def measured(self, step: int, checkpoint: Path) -> pd.DataFrame:
        assert checkpoint.is_file()
        verdict = WORSE if step >= 2 else "undecided"
        row = (step, "knn", "top-1", "%", 20.0, 20.0 + step, -float(step), -3.0, -1.0, verdict)
        self.table = pd.DataFrame([row], columns=list(COLUMNS))
        return self.table


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.Watcher = KnownWatcher  # type: ignore[misc]
    command_line.run(main)
