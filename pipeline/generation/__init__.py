"""Text generation: sampling, and decoding with a key/value cache."""
