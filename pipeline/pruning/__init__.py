"""Fewer vision tokens while pre-training: text-guided (ELIP), vision-only (EViT, ToMe) and random (FLIP)."""
