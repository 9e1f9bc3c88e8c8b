"""What the rules cost: microseconds per decision, and Gram plus combination of large rows; ratios from one run.

    python benchmarks/rules.py            # all tables
    python benchmarks/rules.py --quick    # fewer draws, 2.56 M parameters

"solver" is the quadratic program alone on a Gram matrix, "harmonize()" the whole call: checks, certificate, conflict
metrics. TorchJD's MGDA gets the same Grams (float64, one thread, its defaults: at most 100 Frank-Wolfe steps).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import psutil
import torch

from difc_ray.determinism import generator, pin_threads
from difc_ray.harmonizers import HARMONIZERS, harmonize, solvers
from difc_ray.harmonizers.adapters import torchjd_weighting
from difc_ray.vectors import combine, gram

SIZES = (2, 5, 10, 20)


def grams(n: int, draws: int) -> list[np.ndarray]:
    """Gram matrices of n rows in 2n dimensions: in turn random, against their mean, and of lengths up to 1e6 apart."""
    drawn = []
    for i in range(draws):
        rng = generator(0, "benchmark", step=i)
        rows = rng.standard_normal((n, 2 * n))
        if i % 3 == 1:
            rows = rows - 1.2 * rows.mean(axis=0) + 0.05 * rng.standard_normal((n, 2 * n))
        if i % 3 == 2:
            rows *= 10.0 ** rng.uniform(-3, 3, (n, 1))
        drawn.append(rows @ rows.T)
    return drawn


def median_us(call: Callable[[np.ndarray], object], given: Sequence[np.ndarray]) -> float:
    """Median microseconds of one call, after one warm-up pass over some of the inputs."""
    for matrix in given[:10]:
        call(matrix)
    seconds = []
    for matrix in given:
        started = time.perf_counter()
        call(matrix)
        seconds.append(time.perf_counter() - started)
    return 1e6 * statistics.median(seconds)


def solver_table(draws: int) -> None:
    """The two programs against TorchJD's Frank-Wolfe."""
    print("median µs, one thread")
    heads = ("cone", "min-norm", "dualproj()", "mgda()", "TorchJD MGDA", "/ min-norm", "/ mgda()")
    print(f"{'n':>3}" + "".join(f"{head:>13}" for head in heads))
    theirs, _ = torchjd_weighting("MGDA")
    for n in SIZES:
        given = grams(n, draws)
        base = np.full(n, 1.0 / n)
        cone = median_us(lambda m, base=base: solvers.dual_cone(m, base), given)
        shortest = median_us(solvers.min_norm, given)
        dualproj = median_us(lambda m: harmonize(m, "dualproj"), given)
        mgda = median_us(lambda m: harmonize(m, "mgda"), given)
        torchjd = median_us(lambda m: theirs(torch.from_numpy(m)), given)
        figures = "".join(f"{us:>13.0f}" for us in (cone, shortest, dualproj, mgda, torchjd))
        print(f"{n:>3}{figures}{torchjd / shortest:>12.1f}x{torchjd / mgda:>12.1f}x", flush=True)


def rules_table(draws: int) -> None:
    """``harmonize()`` for every rule on plain rows."""
    print("\nharmonize(), median µs")
    print(f"{'rule':<20}" + "".join(f"{f'n = {n}':>9}" for n in SIZES))
    for name in HARMONIZERS:
        rule = HARMONIZERS.get(name)
        if rule.needs_metric:
            continue
        cells = []
        for n in SIZES:
            extra = {"losses": np.linspace(1.0, 2.0, n)} if rule.needs_losses else {}
            rng = generator(0, "benchmark order")
            call = lambda m, name=name, extra=extra, rng=rng: harmonize(m, name, rng=rng, **extra)  # noqa: E731
            cells.append("-" if rule.two_rows and n != 2 else f"{median_us(call, grams(n, draws)):.0f}")
        print(f"{name:<20}" + "".join(f"{cell:>9}" for cell in cells), flush=True)


def vectors_table(k: int, size: int, repeats: int) -> None:
    """Gram and combination of k rows against one float32 product and one weighted sum, and the memory they take."""
    rng = torch.Generator().manual_seed(0)
    stacked = torch.randn(k, size, generator=rng)
    rows = list(stacked)
    weights = np.linspace(0.1, 0.5, k)
    weights32 = torch.from_numpy(weights).to(torch.float32)
    calls = {
        "float32 Gram": lambda: stacked @ stacked.T,
        "weighted sum": lambda: weights32 @ stacked,
        "vectors.gram": lambda: gram(rows),
        "vectors.combine": lambda: combine(weights, rows),
    }
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):  # in turn, so that other users of the machine disturb all alike; the best of each counts
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    before = psutil.Process().memory_info().rss
    held = gram(rows), combine(weights, rows)
    grown = psutil.Process().memory_info().rss - before
    ours = seconds["vectors.gram"] + seconds["vectors.combine"]
    plain = seconds["float32 Gram"] + seconds["weighted sum"]
    print(f"\nK = {k}, P = {size:,}, {torch.get_num_threads()} threads (best of {repeats}, ms)")
    for name, value in seconds.items():
        print(f"  {name:<16} {1e3 * value:>8.1f}")
    print(f"  ratio {ours / plain:.2f} (goal 1.3); memory grew by {grown / 2**20:.0f} MB, of which the direction is "
          f"{4 * size / 2**20:.0f} MB; rows are {4 * k * size / 2**20:.0f} MB")  # fmt: skip
    del held


def main() -> None:
    """Runs all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws, smaller rows")
    quick = parser.parse_args().quick
    pin_threads(1)
    solver_table(60 if quick else 400)
    rules_table(20 if quick else 100)
    pin_threads(2)
    vectors_table(5, 2_560_000 if quick else 25_600_000, 5 if quick else 7)


if __name__ == "__main__":
    main()
