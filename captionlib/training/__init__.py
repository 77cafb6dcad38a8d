"""The components of training, independent of Ray: batches, losses, schedules, optimizers, the step."""
