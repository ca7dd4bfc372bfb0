"""What theory says about queues, and how sure a simulated mean is.

Not here: the comparison (`test_anchors.py`).
Sources: L. Kleinrock, "Queueing Systems" I (1975); A. M. Law, "Simulation Modeling and Analysis" (batch means);
Y. Inoue, "Queueing analysis of GPU-based inference servers with dynamic batching", arXiv 1912.06322.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "batch_queue_bound",
    "batch_queue_latency",
    "erlang_c_wait",
    "md1_wait",
    "mean_with_error",
    "mg1_wait",
    "mm1_sojourn",
    "repairman_throughput",
]

# Student's t, two-sided 99.9 %, 29 degrees of freedom: 30 batches.
BATCHES = 30
T_999 = 3.659


def mean_with_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of a correlated sequence and the half-width of its 99.9 % confidence interval by batch means."""
    means = np.array([part.mean() for part in np.array_split(values, BATCHES)])
    return float(values.mean()), float(T_999 * means.std(ddof=1) / math.sqrt(BATCHES))


def mm1_sojourn(arrival_rate: float, service_rate: float) -> float:
    """Return the mean time in an M/M/1 queue, service included."""
    return 1 / (service_rate - arrival_rate)


def mg1_wait(arrival_rate: float, mean: float, second_moment: float) -> float:
    """Return the mean wait in an M/G/1 queue (Pollaczek and Khinchine)."""
    return arrival_rate * second_moment / (2 * (1 - arrival_rate * mean))


def md1_wait(arrival_rate: float, service: float) -> float:
    """Return the mean wait in an M/D/1 queue."""
    return mg1_wait(arrival_rate, service, service**2)


def erlang_c_wait(arrival_rate: float, service_rate: float, servers: int) -> float:
    """Return the mean wait in an M/M/k queue."""
    load = arrival_rate / service_rate
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    waits = last / (sum(load**n / math.factorial(n) for n in range(servers)) + last)
    return waits / (servers * service_rate - arrival_rate)


def repairman_throughput(clients: int, think: float, service: float) -> float:
    """Return the throughput of one server with exponential service and clients that think (M/M/1//N)."""
    ratio = service / think
    terms = [math.perm(clients, n) * ratio**n for n in range(clients + 1)]
    return (1 - terms[0] / sum(terms)) / service


def batch_queue_latency(arrival_rate: float, time_of: Callable[[int], float], states: int) -> float:
    """Return the mean latency of a server that takes all that waits whenever it is idle.

    Solved numerically: the size of a batch, seen when it starts, is a Markov chain, since the next batch is what
    arrives while this one runs, or a single request if nothing does. Those who arrive while a batch runs do so
    uniformly over it, so each waits half of it on average, then its own batch.

    Args:
        arrival_rate: Poisson.
        time_of: Time of a batch by its size.
        states: Sizes considered; larger ones must be very unlikely.
    """
    sizes = np.arange(states + 1)
    times = np.array([0.0] + [time_of(int(b)) for b in sizes[1:]])
    log_factorials = np.array([math.lgamma(b + 1) for b in sizes])
    mean = arrival_rate * times[1:, None]
    arrivals = np.exp(sizes[None, :] * np.log(mean) - mean - log_factorials[None, :])
    step = arrivals.copy()
    step[:, 1] += step[:, 0]
    step = step[:, 1:] / step[:, 1:].sum(axis=1, keepdims=True)
    share = np.full(states, 1 / states)
    for _ in range(10_000):
        following = share @ step
        if np.abs(following - share).max() < 1e-14:
            break
        share = following
    spent = (arrivals[:, 1:] * sizes[1:] * (times[1:, None] / 2 + times[None, 1:])).sum(axis=1) + arrivals[
        :, 0
    ] * times[1]
    requests = (arrivals * sizes).sum(axis=1) + arrivals[:, 0]
    return float((share * spent).sum() / (share * requests).sum())


def batch_queue_bound(arrival_rate: float, row: float, fixed: float) -> float:
    """Return Inoue's closed-form upper bound on that latency for a time of `fixed + row * size`."""
    load = arrival_rate * row
    return 1.5 * fixed / (1 - load) + row / 2 * (load + 2) / (1 - load**2)
