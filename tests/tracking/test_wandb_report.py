"""The W&B report of runs: a server gets it with panels that draw what the pipeline logs."""

import json
import sys
from typing import Any

import pytest

from pipeline.log import Stop
from pipeline.tracking.wandb_report import comparison
from tests.tracking.wandb_server import wandb_server


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(Stop, match="pip install wandb-workspaces"):
        comparison("tests", None, None, None)


def test_a_server_gets_a_report_of_one_group_with_means_over_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        comparison("tests", None, "position,seed @ 80a69db", "model.position").save()
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("tester", "tests")
    (grid,) = (block for block in json.loads(view["spec"])["blocks"] if block["type"] == "panel-grid")
    (runs,) = grid["metadata"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("group", "=", "position,seed @ 80a69db")
    panels: list[dict[str, Any]] = [panel["config"] for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]
    assert len(panels) == 8
    assert panels[0]["xAxis"] == "tokens"
    assert panels[0]["metrics"] == ["val/bpb"]
    assert (panels[0]["groupBy"], panels[0]["groupArea"]) == ("model.value.position", "stderr")
