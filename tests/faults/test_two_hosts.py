"""Two hosts: network namespaces joined by a veth pair, each with its own name, address and directory."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import SmallRun, same

ADDRESSES = {"0": "10.213.0.1", "1": "10.213.0.2"}


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"network namespaces are not permitted here: ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[list[list[str]]]:
    """For each host, the words before a command that runs it there."""
    if missing := [name for name in ("ip", "unshare") if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    names = [f"host{number}-{os.getpid()}" for number in ADDRESSES]
    folders = [Path("/etc/netns", name) for name in names]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, folder, address in zip(names, folders, ADDRESSES.values(), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
            folder.mkdir(parents=True)  # which `ip netns exec` lays over /etc
            lines = [f"{address} {name}" for name, address in zip(names, ADDRESSES.values(), strict=True)]
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        yield [
            ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]
            for name in names
        ]
    finally:
        for name, folder in zip(names, folders, strict=True):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)


def train_on(hosts: list[list[str]], runs: list[SmallRun], **environment: str) -> tuple[list[int], list[str]]:
    """Trains on both hosts until the processes end: their exit codes and outputs."""
    environment |= {"NNODES": "2", "RDZV_ENDPOINT": f"{ADDRESSES['0']}:29500"}
    processes = [
        run.start(on=host, NODE_RANK=number, **environment)
        for run, host, number in zip(runs, hosts, ADDRESSES, strict=True)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def test_a_host_with_other_params_is_named(begin: Begin, hosts: list[list[str]]) -> None:
    runs = [begin("first"), begin("second", train={"max_lr": 0.5})]
    codes, outputs = train_on(hosts, runs)
    assert codes == [1, 1]
    assert re.search(r"rank 1 differs from rank 0 in train.max_lr \(0.5; rank 0: [0-9.]+\)\n", outputs[0])
    assert not (runs[0].path / ".runs").exists()


def test_two_hosts_with_a_rank_each_train_as_two_ranks_on_one_host(
    begin: Begin, hosts: list[list[str]], whole_on_two: dict[str, Any]
) -> None:
    """As the README shows it; the second host has the data, and nothing is written there.

    It also finds its own name at a loopback address, as on Debian: gloo must be told the interface.
    """
    path = Path("/etc/netns", name := hosts[1][3], "hosts")
    path.write_text(re.sub(rf".* {name}\n", f"127.0.1.1 {name}\n", path.read_text()))
    runs = [begin("first"), begin("second")]
    codes, outputs = train_on(hosts, runs, GLOO_SOCKET_IFNAME="cable")
    assert codes == [0, 0], "\n".join(outputs)
    assert runs[0].summary().hardware.world_size == 2
    assert same(runs[0].result(), whole_on_two)
    assert sorted(path.name for path in runs[1].path.iterdir()) == [
        "data",
        "dvc.yaml",
        "models",
        "params.yaml",
        "stages",
    ]
