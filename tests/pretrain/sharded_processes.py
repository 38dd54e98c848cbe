"""`python -m dino_dense.pretrain` that says which share of the weights its process holds in memory at the end."""

import torch

from dino_dense.config import command_line
from dino_dense.pretrain import __main__ as command
from dino_dense.pretrain.trainer import Trainer, TrainResult


class ToldTrainer(Trainer):
    """Prints `holds half` if weights and optimizer state take between 45 and 55 % of all."""

    def train(self) -> TrainResult:
        result = super().train()
        learner, teacher, optimizer, _ = self.stepper.state
        tensors = [*learner.parameters(), *teacher.parameters()]
        tensors += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        here = sum(tensor.to_local().numel() for tensor in tensors)  # type: ignore[operator]
        share = here / sum(tensor.numel() for tensor in tensors)
        print("holds half" if 0.45 < share < 0.55 else f"holds {share:.0%}", flush=True)
        return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    command.Trainer = ToldTrainer  # type: ignore[misc,attr-defined]
    command_line.run(command.main)
