"""Training data: trajectories, the feature cache, batches. Needs no accelerator."""
