"""Networks, the classifier that wraps them, and checkpoints."""
