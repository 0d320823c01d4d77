"""Classifiers in the forms that other projects load."""
