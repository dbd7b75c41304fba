"""The training loop and its parts: loader, optimizer, schedule, checkpoints."""
