"""Starts a module on as many processes as the machine needs: `python -m pipeline launch stages.train`.

The same command everywhere: one process per visible GPU, or one process with all cores where there is no GPU. The
environment overrides that:

    NPROC_PER_NODE   processes on this machine
    NNODES           machines; then also
    NODE_RANK        this machine's number, from 0
    RDZV_ENDPOINT    host:port of the first machine
    MAX_RESTARTS     how often all processes are restarted after one has failed or was killed; default 0

torchrun, called in this process, starts the others. A single process without restarts is run directly. Under DVC, all
of them stop as on SIGTERM when DVC ends.
"""

import argparse
import os
import runpy
import sys
from pathlib import Path

from pipeline.log import UserError, environment_int
from pipeline.runtime import cores, stop_with


def main(arguments: list[str]) -> None:
    """Runs a module and exits with its code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", help="for example stages.train")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to it")
    options = parser.parse_args(arguments)
    if "DVC_STAGE" in os.environ:
        stop_with(dvc_process())

    # Only now: importing torch takes seconds, in which DVC may end.
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import get_args_parser, run

    module, arguments = options.module, options.arguments
    nodes = environment_int("NNODES", default=1, minimum=1)
    processes = environment_int("NPROC_PER_NODE", default=max(torch.cuda.device_count(), 1), minimum=1)
    restarts = environment_int("MAX_RESTARTS", default=0, minimum=0)
    if nodes == 1 and processes == 1 and restarts == 0:
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    # torchrun gives each of several processes one thread: divide the cores among them instead.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // processes, 1)))
    # After a signal rank 0 writes a checkpoint, which may take longer than the 30 s that torchrun waits by default.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    os.environ["LAUNCHER_PID"] = str(os.getpid())
    if restarts:
        # Otherwise restarted ranks find each other's old addresses in a store that outlives them:
        # https://github.com/pytorch/pytorch/issues/135712
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        # Without SIGHUP, whose handler would undo nohup. If it ends torchrun, the ranks end too (stop_with).
        signals = "--signals-to-handle=SIGTERM,SIGINT,SIGQUIT"
        options_of_torchrun = [*torchrun_arguments(nodes, processes), f"--max-restarts={restarts}", signals]
        run(get_args_parser().parse_args([*options_of_torchrun, "-m", module, *arguments]))
    except ChildFailedError as error:  # the rank itself has printed why
        rank, failure = error.get_first_failure()
        print(f"{module}: rank {rank} ended with exit code {failure.exitcode}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except RendezvousError as error:
        raise UserError(
            f"{module}: cannot find, or has lost, the other machines ({type(error).__name__}): start the same command "
            f"on all {nodes} (NNODES); RDZV_ENDPOINT ({os.environ.get('RDZV_ENDPOINT')}) must be a free port on the "
            "first that the others can reach"
        ) from error


def dvc_process() -> int:
    """The DVC process that runs this stage: the first ancestor without DVC_STAGE. A shell may be in between."""
    pid = os.getppid()
    try:
        while b"\0DVC_STAGE=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # another user's process, or no /proc
        pass
    return pid


def torchrun_arguments(nodes: int, processes: int) -> list[str]:
    """torchrun's arguments for machines and processes. Raises UserError if the environment is incomplete."""
    if nodes == 1:
        return ["--standalone", f"--nproc-per-node={processes}"]
    if missing := [name for name in ("NODE_RANK", "RDZV_ENDPOINT") if name not in os.environ]:
        raise UserError(f"NNODES ({nodes}): set {' and '.join(missing)} too")
    return [
        f"--nnodes={nodes}",
        f"--node-rank={os.environ['NODE_RANK']}",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={os.environ['RDZV_ENDPOINT']}",
        f"--rdzv-id={os.environ.get('RDZV_ID', 'gpt-pipeline')}",
    ]
