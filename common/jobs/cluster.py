"""Jobs on the nodes of a Ray cluster (an optional extra): pip install ray

A job is a Ray task that runs its command in a child process on the node and hands on what that prints. The command's
folder, with code, data and runs, must exist on every node under the same path, such as a shared disk.
"""

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.base.errors import ENVIRONMENT, UserError
from common.jobs import process
from common.jobs.process import Job, Process, start_child


def cluster_slots(address: str, threads: int, jobs_per_gpu: int, most: int) -> tuple[list["NodeSlot"], int]:
    """As many slots as the cluster has room for, at most ``most``, and the threads of each (0 asks for a fair share).

    A cluster with GPUs lends ``jobs_per_gpu`` shares of each; one without lends its CPUs, ``threads`` to a job.

    Raises:
        UserError: Ray is not installed, no cluster is there, or no node has room (exit 3).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own news of a node that died is a state dump of thirty lines; a job that is lost with it says so in one.
    # Read as ray is imported. Source: Ray, "Configuring Logging", log deduplication.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray", "Ray is not installed", "pip install 'ray>=2.60'", ENVIRONMENT) from None
    try:
        if address:  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"there is no Ray cluster {f'at {address}' if address else 'that this machine belongs to'}"
        raise UserError("--address", f"{what} ({type(error).__name__})", "see docs/scaling.md", ENVIRONMENT) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0)) * jobs_per_gpu) for node in nodes]
    if shares := [(cpus, gpus) for cpus, gpus in sizes if gpus]:
        threads = threads or max(1, min(cpus // gpus for cpus, gpus in shares))
        room, gpu = sum(min(cpus // threads, gpus) for cpus, gpus in shares), 1 / jobs_per_gpu
    else:
        threads = threads or 1
        room, gpu = sum(cpus // threads for cpus, _ in sizes), 0
        if jobs_per_gpu > 1:
            raise UserError("--jobs-per-gpu", "no node of the cluster has a GPU", "leave it out")
    if not room:
        raise UserError("--threads", f"no node of the cluster has {threads} CPUs", "ask for fewer", ENVIRONMENT)
    return [NodeSlot({"num_cpus": threads, "num_gpus": gpu})] * min(room, most), threads


@dataclass(frozen=True)
class NodeSlot:
    """Room for one job on a node that Ray chooses, with what it needs of the node's resources."""

    needs: Mapping[str, float]
    elsewhere = True

    def start(self, job: Job, piped: bool) -> Process:
        """Hand a job to Ray. What it prints is always for us: a node has no terminal."""
        import ray

        for module in (process, sys.modules[__name__]):  # so that a node without our code can say that it has none
            ray.cloudpickle.register_pickle_by_value(module)
        # It is not for Ray to repeat a job: run_jobs knows which exit deserves that.
        task = ray.remote(run_on_node).options(**self.needs, max_retries=0, num_returns="streaming")
        return Task(task.remote(job))


class Task:
    """A job that runs on a node, seen from here as a process."""

    def __init__(self, outputs):
        self.outputs, self.exit_code = outputs, -signal.SIGKILL
        self.over, self.cancelled = threading.Event(), False
        self.stdout = self._said()

    def _said(self) -> Iterator[str]:
        import ray

        try:
            for reference in self.outputs:
                said = ray.get(reference)
                if isinstance(said, int):
                    self.exit_code = said
                else:
                    yield said
        except ray.exceptions.RayError as error:  # its node or worker died, or we cancelled it
            if not self.cancelled:
                first_sentence = re.split(r"\n|(?<=\.) ", str(error).strip() or type(error).__name__)[0]
                yield f"lost: {first_sentence}\n"
        finally:
            self.over.set()

    def wait(self) -> int:
        """The exit code of its command, or that of SIGKILL where its worker or node was lost."""
        self.over.wait()
        return self.exit_code

    def terminate(self) -> None:
        """End the worker; the command it has started does not outlive it (common/base/system.py, end_with_parent)."""
        import ray

        self.cancelled = True
        ray.cancel(self.outputs, force=True)


def run_on_node(job: Job) -> Iterator[str | int]:
    """On a node: run a job's command; gives what it prints, each line led by the node's name, then its exit code."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    name = next(node["NodeName"] for node in ray.nodes() if node["NodeID"] == own)
    for path in (Path(job.folder), Path(job.folder, job.command[0])):
        if not path.exists():
            yield f"error: node {name}: there is no {path}; code, data and runs must be on a disk all nodes share\n"
            yield ENVIRONMENT
            return
    child = start_child(job, {}, piped=True)
    for said in child.stdout or ():
        yield said if said.endswith("\r") else f"{name}: {said}"
    yield child.wait()
