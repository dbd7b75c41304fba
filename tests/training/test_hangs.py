"""A rank that does not come to a collective ends the run in time, and is named."""

import time
from pathlib import Path

import pytest

from pipeline.distributed import ROLL_CALL_S, Group
from pipeline.log import Stop
from tests.ranks import on_ranks
from tests.training.conftest import trainer

TIMEOUT_S = 3.0


def fall_asleep_at_step_3(group: Group, shards: Path, state: Path, sleeper: int, sharding: str) -> None:
    run = trainer(shards, state, None, group, train={"total_batch_size": 192}, runtime={"sharding": sharding})
    step, began = run._step, 0.0

    def sometimes_asleep(number: int) -> None:
        nonlocal began
        if number == 3:
            began = time.monotonic()
            if group.rank == sleeper:
                time.sleep(TIMEOUT_S + 2 * ROLL_CALL_S)
        step(number)

    run._step = sometimes_asleep  # type: ignore[method-assign]
    if group.rank == sleeper:
        with pytest.raises(Stop, match="the ranks have lost each other"):
            run.run()
    else:
        with pytest.raises(Stop) as stop:
            run.run()
        assert str(stop.value) == f"rank {sleeper} did not join step 3 within 3 s (runtime.collective_timeout)"
        assert time.monotonic() - began < TIMEOUT_S + ROLL_CALL_S + 2


@pytest.mark.slow
@pytest.mark.parametrize(("sleeper", "sharding"), [(2, "ddp"), (0, "fsdp")])
def test_a_rank_asleep_ends_the_run_within_the_timeout_and_is_named(
    shards: Path, tmp_path: Path, sleeper: int, sharding: str
) -> None:
    on_ranks(3, fall_asleep_at_step_3, shards, tmp_path, sleeper, sharding, timeout_s=TIMEOUT_S)
