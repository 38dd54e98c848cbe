"""Fine-tuning a whole network: settings, batches, recipe, loop, files. The task is `tasks.finetune`."""
