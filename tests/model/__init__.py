"""Claims about the model."""
