"""What an exchange of rows costs: both transports beside a plain all-reduce of the mean gradient, in one run.

    python benchmarks/transport.py            # P = 0.4 M, 11 M, 25 M and K = 2, 4, 8; some minutes
    python benchmarks/transport.py --quick    # P = 11 M and K = 2, 4

Every worker is a process with one thread and holds one row (two for "2 rows"). Measured is the time from "all rows are
there" to "all workers have the direction", calls to the actors included; no model, no optimizer:

* all-reduce: what data-parallel training does with the gradient, gloo's own, and the division by K;
* collective: shards of rows to their owners, Gram matrix, weights, combination, direction to everybody (gloo);
* object_store: rows to the coordinator, Gram matrix, combination, direction to everybody (Ray's shared memory).

The three take turns, and each figure is a median. Bytes are what one worker sends to others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist

from difc_ray.determinism import pin_threads, thread_environment
from difc_ray.engines.ray.planning import Member
from difc_ray.engines.ray.process_group import Group, Rendezvous, make_store
from difc_ray.engines.ray.replica import ReplicaWorker
from difc_ray.step.coordinator import Update
from difc_ray.step.worker import Token
from difc_ray.tracing import Recorder
from difc_ray.vectors import as_tensor, combine, gram, gram_blocks, sum_blocks

GOAL = 2.5
"""× the all-reduce, for one row and 11 M parameters or more, on CPUs with gloo."""

LARGE = 11_000_000
TOKEN = Token(run="benchmark", attempt=0, step=0, domain="")


class Exchanger(ReplicaWorker):
    """A worker of the transport `collective` with rows, and without anything to make them from."""

    def prepare(self, size: int, rows: int, workers: int, rank: int, rendezvous: Rendezvous | None) -> None:
        """Fresh rows; with a rendezvous also a place in a group."""
        pin_threads(1)
        noise = torch.Generator().manual_seed(rank)
        rows_RP = torch.randn(rows, size, generator=noise)
        self.step = SimpleNamespace(rows_RP=rows_RP, recorder=Recorder("worker"))  # type: ignore[assignment]
        self.members = [Member(domain=str(i), part=0, parts=1) for i in range(workers)]
        self.config = SimpleNamespace(batch_size=1)  # type: ignore[assignment]
        self._received, self._theta_P = torch.empty(0), torch.empty(size)
        if rendezvous is not None:
            self.leave()
            self.group = Group(rendezvous, rank, rendezvous.host)

    def all_reduce(self) -> None:
        """What data-parallel training would do."""
        row_P = self.step.rows_RP[0]
        dist.all_reduce(row_P)
        row_P.div_(len(self.members))

    def exchange_shards(self) -> np.ndarray:
        """The first half of the transport `collective`."""
        self._scatter(self._member())
        return gram_blocks(self._shard_rows()).numpy()

    def finish(self, update: Update) -> int:
        """The second half; the bytes that this worker has sent since the last time."""
        self.combine(TOKEN, update)
        group = self._member()
        sent: int = group.sent_bytes
        group.sent_bytes = 0
        return sent

    def send(self) -> np.ndarray:
        """The rows, for the coordinator."""
        return self.step.rows_RP.numpy()

    def receive(self, theta_P: np.ndarray) -> None:
        """What the coordinator broadcasts, into the worker's own memory."""
        self._theta_P.copy_(as_tensor(theta_P))


def by_collective(workers: list[Any], rows: int) -> int:
    """One exchange from worker to worker; bytes of the worker that sends the most."""
    blocks = ray.get([worker.exchange_shards.remote() for worker in workers])
    gram_NN = sum_blocks(torch.from_numpy(np.concatenate(blocks)))
    update = Update(step=0, weights_N=weights_of(gram_NN))
    sent: list[int] = ray.get([worker.finish.remote(update) for worker in workers])
    return max(sent)


def by_object_store(workers: list[Any], rows: int) -> int:
    """One exchange through the coordinator; bytes of the rows of a worker."""
    stacked = [as_tensor(own) for own in ray.get([worker.send.remote() for worker in workers])]
    raw = [own[kind] for kind in range(rows) for own in stacked]
    direction_P = combine(weights_of(gram(raw)), raw)
    reference = ray.put(direction_P.numpy())
    ray.get([worker.receive.remote(reference) for worker in workers])
    return stacked[0].numel() * 4


def by_all_reduce(workers: list[Any], rows: int) -> int:
    """The mean gradient; bytes of a ring."""
    ray.get([worker.all_reduce.remote() for worker in workers])
    return 0


def weights_of(gram_NN: np.ndarray) -> np.ndarray:
    """Any weights: what a rule costs is measured elsewhere (`benchmarks/rules.py`)."""
    return np.full(len(gram_NN), 1.0 / len(gram_NN))


WAYS = {"all-reduce": by_all_reduce, "collective": by_collective, "object_store": by_object_store}


def measure(workers: list[Any], size: int, rows: int, rounds: int) -> tuple[dict[str, float], dict[str, int]]:
    """Median milliseconds and bytes of each way, which take turns."""
    k = len(workers)
    ray.get([worker.prepare.remote(size, rows, k, rank, None) for rank, worker in enumerate(workers)])
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    sent = dict.fromkeys(WAYS, 0)
    for number in range(rounds + 1):
        for name, way in WAYS.items():
            started = time.perf_counter()
            sent[name] = way(workers, rows)
            if number:  # the first is for warming up
                times[name].append(1e3 * (time.perf_counter() - started))
    sent["all-reduce"] = round(2 * 4 * size * (k - 1) / k)
    return {name: statistics.median(own) for name, own in times.items()}, sent


def main() -> int:
    """Prints the table; 1 if the goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="P = 11 M and K = 2, 4 only")
    parser.add_argument("--rounds", type=int, default=7, help="exchanges per figure")
    told = parser.parse_args()
    sizes, counts = ([LARGE], [2, 4]) if told.quick else ([431_080, LARGE, 25_600_000], [2, 4, 8])
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=4 * 2**30, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    pin_threads(1)
    host = ray.util.get_node_ip_address()
    store, missed = make_store(host), []
    print("ms per exchange, and how many times the all-reduce; MB that a worker sends to others")
    print(f"{'P':>12} {'K':>3} {'rows':>5} {'all-reduce':>11} {'collective':>17} {'object_store':>17} "
          f"{'ring MB':>8} {'sent MB':>8}")  # fmt: skip
    for k in counts:
        actor = ray.remote(Exchanger).options(num_cpus=0, runtime_env={"env_vars": thread_environment(1)})
        workers = [actor.remote(1, [], "gloo") for _ in range(k)]
        rendezvous = Rendezvous(host=host, port=store.port, name=f"k{k}", size=k, backend="gloo", timeout_s=60)
        ray.get([worker.prepare.remote(1, 1, k, rank, rendezvous) for rank, worker in enumerate(workers)])
        for size in sizes:
            for rows in (1, 2):
                ms, sent = measure(workers, size, rows, told.rounds)
                plain = ms["all-reduce"]
                cells = [f"{ms[name]:>8.1f} = {ms[name] / plain:>4.2f} ×" for name in ("collective", "object_store")]
                print(f"{size:>12,} {k:>3} {rows:>5} {plain:>11.1f} {cells[0]:>17} {cells[1]:>17} "
                      f"{sent['all-reduce'] / 1e6:>8.2f} {sent['collective'] / 1e6:>8.2f}", flush=True)  # fmt: skip
                if rows == 1 and size >= LARGE and ms["collective"] > GOAL * plain:
                    missed.append(f"P = {size:,}, K = {k}: {ms['collective'] / plain:.2f} ×")
        for worker in workers:
            ray.kill(worker)
    ray.shutdown()
    print(f"goal, one row, P >= 11 M: collective <= {GOAL} × the all-reduce: "
          + (f"missed at {'; '.join(missed)}" if missed else "met"))  # fmt: skip
    return 1 if missed else 0


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(main())
