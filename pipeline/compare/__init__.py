"""Runs beside each other, paired by test image."""
