"""Losses of tensors: contrastive, matching, masked words; and the momentum tower that soft labels come from."""
