"""Weights of other projects, read into our models and written back: names, layouts, files."""
