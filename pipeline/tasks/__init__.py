"""What is trained and evaluated: pre-training, statements, retrieval."""
