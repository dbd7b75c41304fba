"""Sweeps: settings in all combinations, queued as DVC experiments and watched to their end."""
