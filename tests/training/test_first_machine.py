"""Machines are numbered twice, by the person who starts them and by torchrun; the first must be the same."""

import pytest

from pipeline.distributed import check_first_machine
from pipeline.log import Stop


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"GROUP_RANK": "0"},
        {"NODE_RANK": "0", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "2"},
        {"NODE_RANK": "1", "GROUP_RANK": "2", "GROUP_WORLD_SIZE": "3"},
        {
            "NODE_RANK": "1",
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
        },  # left over: there is one machine
    ],
)
def test_machines_that_agree_on_the_first_go_on(environment: dict[str, str]) -> None:
    check_first_machine(environment)


@pytest.mark.parametrize(("called", "number", "where"), [("0", "1", "sorts first"), ("1", "0", "NODE_RANK=0, here")])
def test_a_model_that_would_end_up_on_another_machine_than_dvc_is_refused_at_the_start(
    called: str, number: str, where: str
) -> None:
    with pytest.raises(Stop, match=rf"NODE_RANK \({called}\) must be 0 .* has number {number}: run DVC.*{where}"):
        check_first_machine({"NODE_RANK": called, "GROUP_RANK": number, "GROUP_WORLD_SIZE": "2"})
