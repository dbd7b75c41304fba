"""Experiments side by side: read from DVC and Git, grouped by configuration, tested for significance, drawn."""
