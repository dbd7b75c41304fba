"""Validation loss, HellaSwag and surprisal."""
