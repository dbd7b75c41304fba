"""Runs combinations of settings through DVC's experiment queue."""
