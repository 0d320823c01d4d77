"""The library: everything that computes. It imports nothing from `stages`."""
