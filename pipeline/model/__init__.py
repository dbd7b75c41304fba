"""GPT language models: architecture, weights and their cost. Knows nothing of files, data or training."""
