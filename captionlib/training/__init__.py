"""What training is made of, without Ray: batches, schedules, optimizers, the step."""
