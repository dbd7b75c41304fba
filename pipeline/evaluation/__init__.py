"""Numbers about a model: validation loss and HellaSwag."""
