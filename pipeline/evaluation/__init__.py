"""Scores of trained models, one module a task."""
