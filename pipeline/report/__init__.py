"""The report: what a run gave, on one self-contained page."""
