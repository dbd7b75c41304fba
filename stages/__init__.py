"""The six stages of the pipeline, each run as `python -m stages.<name>`."""

import pipeline.log  # noqa: F401 (first, so that Ctrl-C while a stage imports torch ends quietly)
