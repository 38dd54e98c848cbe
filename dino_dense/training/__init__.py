"""What every training loop shares: pretraining, fine-tuning and the probes on frozen features."""
