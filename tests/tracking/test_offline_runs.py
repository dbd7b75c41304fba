"""Offline runs that a kill has cut short can be gone on with, and synced."""

import shutil
from pathlib import Path

import pytest
import wandb

from pipeline.tracking.identity import RunIdentity
from pipeline.tracking.offline_runs import FILE_HEADER, mend, taken_up
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.wandb_run import WandbRun
from tests.tracking.offline import of_kind

STEPS = 300  # records of more than two blocks


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an offline run."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        params = TrackingParams(mode="offline", project="tests", entity=None, group=None, tags=[])
        run = WandbRun(RunIdentity("abc123", "a-run", "offline"), params, about={})
        run.record([{"step": step, "tokens": 8 * step, "train/loss": 1 / (step + 1)} for step in range(STEPS)])
        run.finish()
        wandb.teardown()  # as at the end of a process
    (file,) = folder.glob("wandb/offline-run-*/run-abc123.wandb")
    return file


def test_a_whole_run_is_left_as_it_is_and_its_steps_are_known(part: Path) -> None:
    before = part.read_bytes()
    assert len(before) > 2 * 32 * 1024
    assert taken_up(part.parents[1], "abc123") == set(range(STEPS))
    assert taken_up(part.parents[1], "another") == set()
    assert part.read_bytes() == before


@pytest.mark.parametrize("share", [0.3, 0.61, 0.97])
def test_a_cut_record_is_taken_off_and_nothing_else(part: Path, tmp_path: Path, share: float) -> None:
    content = part.read_bytes()
    for length in range(int(share * len(content)), int(share * len(content)) + 40, 13):
        file = tmp_path / f"offline-run-{length}-abc123" / part.name
        file.parent.mkdir()
        file.write_bytes(content[:length])
        mend(file)
        mended = file.read_bytes()
        assert content.startswith(mended)
        assert length - len(mended) < 2000
        mend(file)
        assert file.read_bytes() == mended
    steps = [row["item"]["_step"] for row in of_kind(file.parent, "history")]
    assert steps == list(range(len(steps)))
    assert taken_up(tmp_path, "abc123") == set(steps)


def test_a_run_that_had_only_begun_and_a_file_of_another_form_do_no_harm(part: Path, tmp_path: Path) -> None:
    shutil.copytree(part.parent, tmp_path / part.parent.name)
    (file,) = tmp_path.glob("*/*.wandb")
    for content in (b"", FILE_HEADER[:3], FILE_HEADER, b"something else"):
        file.write_bytes(content)
        assert taken_up(tmp_path, "abc123") == set()
        assert file.read_bytes() == content
