"""Training: the loop, its targets, schedule, moving average and resumable state."""
