"""Everything on a GPU: `python -m pytest tests/cuda`. Skipped without one.

GPT_TEST_DEVICE=cpu runs the same tests on the CPU, which tests the tests.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.distributed import Group
from tests.training.conftest import write_shards

# Before anything starts cuBLAS, which reads it only then; a training process sets it itself.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def device() -> Iterator[torch.device]:
    device = torch.device(os.environ.get("GPT_TEST_DEVICE", "cuda:0"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.compiler.reset()
    yield device
    torch.use_deterministic_algorithms(False)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def group(device: torch.device) -> Group:
    return Group(0, 1, device)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))
