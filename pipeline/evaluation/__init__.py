"""Measuring: accuracy, calibration and robustness, always in evaluation mode."""
