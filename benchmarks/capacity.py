"""A capacity plan: machines, price and energy for so many requests a day, predicted from measured rows.

    python -m benchmarks.capacity benchmarks/results/2026-11-22-ahead.jsonl
    python -m benchmarks.capacity ROWS --daily 1e9 --deadline-ms 25 --instance c7i.4xlarge --day day.txt

Latency rows of ours become the cost curve of a process, and the scheduler that serves is simulated on it with Poisson
arrivals. What a process takes is the largest rate at which 99 % of all requests, refused ones included, are answered
within the deadline. A machine runs as many processes as its cores allow, and there are as many machines as the hour of
the day needs, with spare ones beside them. Everything that is printed is a prediction:

* cores of the instance are taken to be as fast as those of the rows, and processes not to slow each other down;
* HTTP and tokenising are left out, unless --request-ms says what a request costs beside its forward;
* prices, watts and the traffic of a day are inputs: look them up before you rely on them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import rows
from distilfast.serving.cost import SHORT, Cost, Curve
from distilfast.serving.scheduler import Model, Scheduler
from distilfast.serving.simulation import Arrival, Simulation

IN_TIME = 0.99
"""Of all requests: what p99 means where late ones are refused."""

LENGTHS = (7, 8, 9, 10, 11, 11, 12, 13, 14, 16, 19)
"""Tokens of a request where no --lengths are given: about those of CLINC150's texts."""

DAY = (55, 45, 38, 34, 33, 36, 46, 62, 82, 101, 117, 128, 134, 137, 139, 140, 141, 142, 143, 145, 146, 138, 115, 83)
"""Requests in each hour of a day, relative to each other: made up, as of a service for one part of the world. Its
busiest hour has 1.5 times the average. An input, not a measurement."""


@dataclass(frozen=True)
class Instance:
    """What is rented: its virtual CPUs, dollars an hour, and watts of a virtual CPU when it is idle and busy."""

    cpus: int
    dollars: float
    idle_watts: float
    busy_watts: float


INSTANCES = {
    "c7a.4xlarge": Instance(16, 0.82112, 0.739, 2.282),  # AMD EPYC, 4th generation
    "c7i.4xlarge": Instance(16, 0.714, 1.036, 4.160),  # Intel Xeon, Sapphire Rapids
}
"""Inputs, not measurements. Dollars: AWS on demand, Linux, us-east-1, as the SkyPilot catalog v8 lists them
(github.com/skypilot-org/skypilot-catalog, commit 00148f2a, looked up on 2026-11-28). Watts: of Cloud Carbon Footprint
(github.com/cloud-carbon-footprint/ccf-coefficients, output/coefficients-aws-use.csv, commit b0032d92, of 2026-03)."""

PUE = 1.135
"""What a data centre draws over what its machines do: Cloud Carbon Footprint's constant for AWS. An input."""


def main() -> None:
    arguments = _arguments()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    chosen = latencies(arguments.rows, arguments.precision)
    curve, threads = curve_of(chosen), int(chosen[0]["threads"])
    instance = _instance(arguments)
    lengths, day = _numbers(arguments.lengths, LENGTHS), np.asarray(_numbers(arguments.day, DAY), float)
    console.print(f"rows: {arguments.precision} on {chosen[0]['machine']['processor']}, {threads} threads a process")
    console.print(f"an input: {arguments.request_ms:g} ms of a process for a request beside its forward (--request-ms)")
    rate = largest_rate(curve, lengths, arguments.deadline_ms / 1e3, arguments.request_ms / 1e3, arguments.seconds)
    if not rate:
        raise SystemExit("No load is small enough: a single request takes longer than the deadline.")
    plan = planned(day * arguments.daily / day.sum(), rate * (instance.cpus // threads), instance, arguments.spare)
    console.print(f"a process, predicted: {rate:,.0f} requests/s with p99 within {arguments.deadline_ms:g} ms")
    for line in plan.lines(arguments.daily, arguments.instance):
        console.print(line)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="+", type=Path, help="files of result rows; of several runs the last one counts")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--daily", type=float, default=1e9, help="requests a day")
    parser.add_argument("--deadline-ms", type=float, default=25.0)
    parser.add_argument("--request-ms", type=float, default=0.0, help="of a process, for a request beside its forward")
    parser.add_argument("--lengths", type=Path, help="tokens of a request, one number a line")
    parser.add_argument("--day", type=Path, help="requests of each part of a day, one number a line")
    parser.add_argument("--spare", type=int, default=1, help="machines that may fail at the busiest hour")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load that is simulated")
    parser.add_argument("--instance", default="c7a.4xlarge", help=f"{', '.join(INSTANCES)}, or any name with these:")
    for name in ("cpus", "dollars", "idle_watts", "busy_watts"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int if name == "cpus" else float)
    return parser.parse_args()


def _instance(arguments: argparse.Namespace) -> Instance:
    known = INSTANCES.get(arguments.instance)
    given = {name: getattr(arguments, name) for name in ("cpus", "dollars", "idle_watts", "busy_watts")}
    values = {name: getattr(known, name, None) if value is None else value for name, value in given.items()}
    if lacking := [name for name, value in values.items() if value is None]:
        raise SystemExit(f"{arguments.instance} is not known; it needs --{' --'.join(lacking).replace('_', '-')}.")
    return Instance(**values)


def _numbers(file: Path | None, default: Sequence[float]) -> list[float]:
    """One number a line, all positive and one at least."""
    if file is None:
        return list(default)
    try:
        found = [float(line) for line in file.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise SystemExit(f"{file} cannot be read: {error}.") from None
    if not found or min(found) <= 0:
        raise SystemExit(f"{file} needs positive numbers, one a line.")
    return found


def latencies(files: Sequence[Path], precision: str) -> list[rows.Row]:
    """Those of ours in one precision, of the last run in these files of rows."""
    found = [
        row
        for row in rows.read(files)
        if row["what"] == "latency" and row.get("contestant") == "distilfast" and row.get("device", "cpu") == "cpu"
        and row["precision"] == precision and "p50_ms" in row
    ]  # fmt: skip
    if not found:
        raise SystemExit(f"There is no latency of distilfast {precision} in these rows.")
    last = found[-1]
    return [row for row in found if row["commit"] == last["commit"] and row["threads"] == last["threads"]]


# ---------------------------------------------------------------------------------------------- what a process can take


def curve_of(latencies: Sequence[rows.Row]) -> Curve:
    """The cost of a forward from rows with cases "1x8", "8x32", …, sequences times tokens each.

    Attention is what 256 tokens cost in one sequence beyond what they cost in eight; without it every other row is a
    point of the curve. Raises SystemExit where a row is missing.
    """
    seconds = {row["case"]: row["p50_ms"] / 1e3 for row in latencies}
    cases = {"1x8": (1, 8), "1x16": (1, 16), "1x32": (1, 32), "1x64": (1, 64), "1x128": (1, 128), "8x32": (8, 32)}
    if lacking := [name for name in (*cases, "1x256") if name not in seconds]:
        raise SystemExit(f"These rows have no latency of {', '.join(lacking)}.")
    squares = {name: batch * length * max(0, length - SHORT) for name, (batch, length) in cases.items()}
    attention = max(0.0, (seconds["1x256"] - seconds["8x32"]) / (256 * (256 - SHORT) - squares["8x32"]))
    points = {batch * length: seconds[name] - attention * squares[name] for name, (batch, length) in cases.items()}
    rising = np.maximum.accumulate([points[tokens] for tokens in sorted(points)])
    return Curve(tuple(sorted(points)), tuple(map(float, rising)), attention)


def in_time(
    curve: Curve, lengths: Sequence[float], rate: float, deadline: float, request: float, seconds: float
) -> float:
    """The part of all requests that are answered within ``deadline`` seconds at ``rate`` a second.

    ``request``: seconds of the processor for each request beside its forward.
    """
    rng = np.random.default_rng(11)
    count = max(1000, int(rate * seconds))
    times = np.cumsum(rng.exponential(1 / rate, count))
    tokens = rng.choice(np.asarray(lengths, int), count)
    arrivals = [Arrival(float(at), [int(n)], deadline) for at, n in zip(times, tokens, strict=True)]
    each = _with_requests(curve, request, float(np.mean(tokens)))
    simulation = Simulation(Scheduler({"": Model(Cost(each))}), lambda batch: each(batch.lengths))
    results = simulation.run(arrivals)
    return sum(result.good for result in results) / len(results)


def _with_requests(curve: Curve, request: float, tokens: float) -> Curve:
    """What requests cost beside their forwards is spread over their tokens."""
    more = tuple(y + request * x / tokens for x, y in zip(curve.tokens, curve.seconds, strict=True))
    return Curve(curve.tokens, more, curve.attention)


def largest_rate(
    curve: Curve, lengths: Sequence[float], deadline: float, request: float = 0.0, seconds: float = 30.0
) -> float:
    """Requests a second of which ``IN_TIME`` are answered in time, to 1 %; 0 where no rate is small enough."""

    def keeps(rate: float) -> bool:
        return in_time(curve, lengths, rate, deadline, request, seconds) >= IN_TIME

    high = 1 / (_with_requests(curve, request, float(np.mean(lengths))).throughput * float(np.mean(lengths)))
    return _largest(keeps, 1.0, 1.1 * high)


def _largest(keeps: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number between the two that ``keeps``, to 1 %, of those that do being below those that do not."""
    if not keeps(low):
        return 0.0
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


# -------------------------------------------------------------------------------------------------------- what it needs


@dataclass(frozen=True)
class Plan:
    """Of a day: machines at the busiest part, machine-hours, dollars and kWh, fixed and by the hour."""

    machines: int
    rate: float  # requests a second of a machine
    busiest: float  # requests a second
    fixed: tuple[float, float, float]
    scaled: tuple[float, float, float]

    def lines(self, daily: float, instance: str) -> list[str]:
        """For a person."""
        millions = daily / 1e6
        found = [f"a machine ({instance}), predicted: {self.rate:,.0f} requests/s"]
        found.append(f"the busiest hour has {self.busiest:,.0f} requests/s: {self.machines} machines, predicted")
        for name, (hours, dollars, kwh) in (("the same all day", self.fixed), ("by the hour", self.scaled)):
            found.append(
                f"{name}, predicted for a day: {hours:,.0f} machine-hours, ${dollars:,.2f} "
                f"(${dollars / millions:.4f} a million), {kwh:,.1f} kWh ({3.6e6 * kwh / daily:.3f} J a request)"
            )
        return [*found, "Prices, watts and the day are inputs; see benchmarks/capacity.py for what is left out."]


def planned(parts: np.ndarray, rate: float, instance: Instance, spare: int) -> Plan:
    """The plan for a day with so many requests in each of its equal ``parts``, where a machine takes ``rate`` a second.

    Each part has the machines that its average needs and ``spare`` more; a part that is busier within itself needs to
    be cut finer. Watts rise in proportion to the load.
    """
    hours = 24 / len(parts)
    rates = parts / (3600 * hours)
    needed = np.ceil(rates / rate) + spare
    most = float(needed.max())

    def of(machines: np.ndarray) -> tuple[float, float, float]:
        load = rates / (machines * rate)
        watts = instance.idle_watts + (instance.busy_watts - instance.idle_watts) * load
        kwh = float((machines * hours * instance.cpus * watts).sum()) * PUE / 1e3
        time = float(machines.sum()) * hours
        return time, time * instance.dollars, kwh

    return Plan(int(most), rate, float(rates.max()), of(np.full(len(parts), most)), of(needed))


if __name__ == "__main__":
    main()
