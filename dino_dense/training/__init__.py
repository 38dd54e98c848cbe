"""Tools of every training loop: pretraining, fine-tuning and the probes on frozen features."""
