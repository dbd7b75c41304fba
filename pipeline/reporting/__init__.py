"""Markdown, figures and comparisons from the files that the stages leave. No module here imports torch."""
