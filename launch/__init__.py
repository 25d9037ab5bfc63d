"""What happens around processes: command line, stages, Ray, reports."""
