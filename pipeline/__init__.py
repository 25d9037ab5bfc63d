"""What one training process does: stream, model, loss, step, checkpoint."""
