"""Reference runs, made once, that tests compare their own with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.small import SmallRun, write_data

Begin = Callable[..., SmallRun]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def begin(data: Path, tmp_path: Path) -> Begin:
    """Makes a run of its own for a test: begin(train={"seed": 2})."""

    def make(name: str = "run", **changes: Mapping[str, Any]) -> SmallRun:
        return SmallRun(tmp_path / name, data, **changes)

    return make


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run without faults."""
    run = SmallRun(tmp_path_factory.mktemp("finished") / "run", data)
    run.train()
    return run


@pytest.fixture(scope="session")
def whole(finished: SmallRun) -> dict[str, Any]:
    """Its result."""
    return finished.result()


@pytest.fixture(scope="session")
def checkpoint_bytes(finished: SmallRun) -> int:
    """What a checkpoint takes on the disk, at most."""
    return sum(file.stat().st_size // 4096 * 4096 + 4096 for file in finished.newest().directory.iterdir()) + 4096


@pytest.fixture(scope="session")
def whole_on_two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same on two ranks."""
    run = SmallRun(tmp_path_factory.mktemp("two") / "run", data)
    run.train(ranks=2)
    return run.result()
