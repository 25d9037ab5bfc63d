"""Numbers about models: multiply-accumulates, intervals, survivors."""
