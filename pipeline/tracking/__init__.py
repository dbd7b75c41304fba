"""What is written down while a run goes on: curves and Weights & Biases."""
