"""Scores of predictions that lie in files, by the rules that each data set's own evaluation has."""
