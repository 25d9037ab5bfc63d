"""Runs on a remote Ray cluster, through its job server."""
