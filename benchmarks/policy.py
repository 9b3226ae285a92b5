"""What the server's policy does at each load, beside policies that know no deadline: a prediction, by simulation.

    python -m benchmarks.policy benchmarks/results/2026-11-22-ahead.jsonl --plot docs/assets/policy.svg

Requests of CLINC150's lengths arrive at random or in bursts and want an answer within 25 ms. The scheduler is the one
that serves; a forward takes what the rows say, and HTTP takes nothing. Load 1 is what batches of the most economical
size could serve. The other policies answer everything in its order: one request at a time, or all that waits in one
batch of at most 16, padded to its longest, as dynamic batchers do.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.capacity import curve_of, latencies
from benchmarks.serving import DEADLINE_MS, arrivals, predicted
from benchmarks.workloads import DATA, real_texts
from distilfast.serving.cost import Cost, Curve
from distilfast.tokenizer import Tokenizer

LOADS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
SECONDS = 20.0
MOST = 16
"""Requests in a batch of the policy that pads."""


def by_deadline(curve: Curve, due: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Latencies in ms of requests of these ``lengths`` that arrive at ``due`` seconds, NaN where one is refused."""
    taken, statuses = predicted(curve, lengths, due, capacity=math.inf)
    return np.where(statuses == 200, taken, np.nan)


def one_at_a_time(curve: Curve, due: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The same, first come, first served."""
    return in_batches(curve, due, lengths, most=1)


def in_batches(curve: Curve, due: np.ndarray, lengths: Sequence[int], most: int = MOST) -> np.ndarray:
    """The same where all that waits, at most ``most``, is one batch, padded to its longest."""
    ends = np.zeros(len(due))
    now, first = 0.0, 0
    while first < len(due):
        now = max(now, due[first])
        last = min(first + most, int(np.searchsorted(due, now, side="right")))
        now += curve([max(lengths[first:last])] * (last - first))
        ends[first:last] = now
        first = last
    return 1e3 * (ends - due)


POLICIES: dict[str, Callable[[Curve, np.ndarray, Sequence[int]], np.ndarray]] = {
    "distilfast": by_deadline,
    f"padded batches of up to {MOST}": in_batches,
    "one at a time": one_at_a_time,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="+", type=Path, help="files of result rows; of several runs the last one counts")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    measured = latencies(arguments.rows, arguments.precision)
    lengths = recorded_lengths()
    shares = {kind: goodput(curve_of(measured), lengths, kind, arguments.seconds) for kind in ("poisson", "bursty")}
    for kind, of_policies in shares.items():
        _print(kind, of_policies)
    if arguments.plot:
        row = measured[0]
        machine = f"{row['machine']['processor']}, {row['threads']} threads, {arguments.precision}, {row['when'][:10]}"
        plt.rcParams |= {"svg.hashsalt": "distilfast", "svg.fonttype": "none"}
        plot(shares, machine).savefig(arguments.plot, metadata={"Date": None})


def recorded_lengths() -> list[int]:
    """Tokens of CLINC150's texts."""
    made = Tokenizer.from_directory(DATA / "vocab-cased").encode_batch(real_texts("clinc150"))
    return [len(each.ids) for each in made]


def goodput(curve: Curve, lengths: Sequence[int], kind: str, seconds: float) -> dict[str, list[float]]:
    """By policy and load, answers within the deadline as a share of load 1; ``kind``: of ``arrivals``."""
    cost = Cost(curve)
    most = 1 / float(np.mean([cost.share([n]) for n in lengths]))
    found: dict[str, list[float]] = {name: [] for name in POLICIES}
    for load in LOADS:
        due, _ = arrivals(load * most, seconds, kind)
        drawn = np.random.default_rng(3).choice(lengths, len(due)).tolist()
        for name, policy in POLICIES.items():
            in_time = policy(curve, due, drawn) <= DEADLINE_MS  # NaN is not
            found[name].append(float(np.sum(in_time)) / seconds / most)
    return found


def _print(kind: str, found: dict[str, list[float]]) -> None:
    table = Table(title=f"Predicted: answers within {DEADLINE_MS:g} ms, {kind} arrivals", title_justify="left")
    for name in ("load", *found):
        table.add_column(name, justify="right")
    for i, load in enumerate(LOADS):
        table.add_row(f"{load:.0%}", *(f"{shares[i]:.0%}" for shares in found.values()))
    Console().print(table)


def _possible(load: float, kind: str) -> float:
    """What could be answered if nothing waited: of a burst, which is a fifth of the time, no more than load 1."""
    return min(load, 1.0) if kind == "poisson" else 0.2 * min(3 * load, 1.0) + 0.8 * min(load / 2, 1.0)


_LINES = (("#0b7a75", 2.5), ("#c2571a", 1.5), ("#5d6b79", 1.5))
"""Colour and width by policy."""


def plot(shares: dict[str, dict[str, list[float]]], machine: str) -> Figure:
    """A picture for each kind of arrivals, on one scale."""
    figure, pictures = plt.subplots(1, len(shares), figsize=(9, 3.8), sharey=True, layout="constrained")
    titles = {"poisson": "Independent arrivals", "bursty": "Bursts at three times the rate"}
    for axes, (kind, found) in zip(pictures, shares.items(), strict=True):
        axes.plot(LOADS, [_possible(load, kind) for load in LOADS], ":", color="#888", label="without any waiting")
        for (name, values), (colour, width) in zip(found.items(), _LINES, strict=True):
            axes.plot(LOADS, values, "o-", markersize=3.5, color=colour, linewidth=width, label=name)
        axes.set_title(titles[kind], loc="left", fontsize=11)
        axes.set(xlabel="requests that arrive, as a share of what can be served", ylim=(0, 1.1))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    pictures[0].set_ylabel(f"of that, answered within {DEADLINE_MS:g} ms")
    figure.legend(*pictures[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Simulated, HTTP left out; costs of {machine}", x=0.01, ha="left", fontsize=9, color="#555")
    return figure


if __name__ == "__main__":
    main()
