"""Starts a stage on all processes that the machine calls for: `python -m pipeline.launch stages.train`.

The same command everywhere: one process per visible GPU; one process with all cores where there is none. The
environment may say otherwise:

    NPROC_PER_NODE   processes on this machine
    NNODES           machines; then also
    NODE_RANK        this machine's number, from 0
    RDZV_ENDPOINT    host:port of the first machine
    MAX_RESTARTS     how often all processes are started again when one has failed or was killed; 0 if not set

Processes are started by torchrun, in this process. A single one that is not to be restarted needs no launcher and is
run directly.
"""

import os
import runpy
import sys

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from pipeline.machine import cores


def main(module: str, arguments: list[str]) -> None:
    """Runs `module` and exits with its code."""
    nodes = int(os.environ.get("NNODES", "1"))
    processes = int(os.environ.get("NPROC_PER_NODE") or max(torch.cuda.device_count(), 1))
    restarts = int(os.environ.get("MAX_RESTARTS", "0"))
    if nodes == 1 and processes == 1 and restarts == 0:
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    # torchrun gives each of several processes one thread; share the cores instead.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // processes, 1)))
    # After a signal rank 0 has a checkpoint to write, which may take longer than the 30 s that torchrun would wait for.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    if restarts:
        # Else ranks that are started again find each other's old addresses in a store that outlives them:
        # https://github.com/pytorch/pytorch/issues/135712
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        how = [*torchrun_arguments(nodes, processes), f"--max-restarts={restarts}"]
        run(get_args_parser().parse_args([*how, "-m", module, *arguments]))
    except ChildFailedError as error:  # the rank has said why
        rank, failure = error.get_first_failure()
        print(f"{module}: rank {rank} ended with exit code {failure.exitcode}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def torchrun_arguments(nodes: int, processes: int) -> list[str]:
    """What torchrun is told about machines and processes. Raises SystemExit where the environment is incomplete."""
    if nodes == 1:
        return ["--standalone", f"--nproc-per-node={processes}"]
    if missing := [name for name in ("NODE_RANK", "RDZV_ENDPOINT") if name not in os.environ]:
        sys.exit(f"NNODES is {nodes}: set {' and '.join(missing)} too")
    return [
        f"--nnodes={nodes}",
        f"--node-rank={os.environ['NODE_RANK']}",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={os.environ['RDZV_ENDPOINT']}",
        f"--rdzv-id={os.environ.get('RDZV_ID', 'gpt-pipeline')}",
    ]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
