"""For all tests."""

import os

# Models here are tiny: more threads only wait for each other. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
