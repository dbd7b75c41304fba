"""Weights & Biases: the run of each training, and what the report stage adds to it."""
