"""The GPT network, its config, and its cost in parameters, FLOPs and bytes."""
