"""Experiments side by side: read, grouped, weighed against their noise, drawn and told."""
