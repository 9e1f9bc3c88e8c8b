"""A Ray cluster of processes on this machine, as a script: it prints its address, and grows when a line is sent.

The head has a CPU and no GPU; the node that comes later has two CPUs and says that it has a GPU.
"""

from __future__ import annotations

import sys


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        print(cluster.address, flush=True)
        for _ in sys.stdin:
            cluster.add_node(num_cpus=2, num_gpus=1)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
