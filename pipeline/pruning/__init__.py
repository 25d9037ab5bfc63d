"""Fewer vision tokens while pre-training: ELIP's text-guided selection and merging."""
