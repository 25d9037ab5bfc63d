"""`trimline scale`: the same pre-training at many batch sizes, each in a process and within limits of its own."""
