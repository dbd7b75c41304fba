"""Validation loss, benchmarks and surprisal."""
