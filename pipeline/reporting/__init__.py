"""The report of one run, from the files that the stages leave. No module here imports torch."""
