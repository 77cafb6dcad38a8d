"""Plans the resources of a batch job: how many actors hold the model, with how many CPUs and threads, and how many CPUs
remain for decoding.

The plan is a pure function of the machines, so that every size can be tested. The whole job must fit at once:
otherwise actors and decoding tasks could wait for each other forever.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from captionlib.captioners.base import ANY_MACHINE, Needs
from captionlib.errors import UserError
from captionlib.images.decode import MAX_PIXELS

ACTORS_PER_MACHINE = 8
"""Largest number of actors per machine. An encoder's threads synchronise at every layer: on two CPUs, two actors of one
thread are about a quarter faster than one of two. But each actor holds a copy of the model, so larger machines get
larger actors."""
LARGEST_ACTOR_CPUS = 8
"""An encoder gains little from more threads than that; larger machines get more actors."""
ACTOR_SHARE = 0.75
"""Share of a machine's CPUs for actors, without GPUs: encoding costs about three times as much as decoding."""
SMALLEST_TASK_CPUS = 0.5
SMALLEST_ACTOR_CPUS = 0.1


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    cpus: float
    gpus: float = 0
    memory_gib: float = math.inf
    """Memory that Ray may use, without the object store, in GiB."""


@dataclass(frozen=True)
class Plan:
    """Resources of the two stages."""

    num_actors: int
    actor_cpus: float
    actor_gpus: float
    actor_threads: int
    """Threads of the model's engine on a CPU. May exceed `actor_cpus`, to use CPUs that decoding leaves idle."""
    decode_cpus: float
    """CPUs per decoding task."""
    num_decoders: int
    """Number of decoding tasks that run concurrently."""

    @property
    def decode_threads(self) -> int:
        """Number of threads that decode within one task."""
        return max(1, round(self.decode_cpus * 2))

    def __str__(self) -> str:
        what = f"{self.num_actors} model actor" + ("s" if self.num_actors > 1 else "")
        threads = f"{self.actor_threads} thread" + ("s" if self.actor_threads > 1 else "")
        device = f"{self.actor_gpus:g} GPU" if self.actor_gpus else threads
        return f"{what} with {device} each"


BYTES_PER_PIXEL = 16
"""Upper limit of the memory for decoding an image and converting it to RGB."""


def decoding_bytes(max_pixels: int) -> int | None:
    """Memory that a decoding task needs for the largest image; None where the usual room is enough."""
    return BYTES_PER_PIXEL * max_pixels if max_pixels > MAX_PIXELS else None


def check_decoding_memory(max_pixels: int, memory_gib: float) -> None:
    """Check that a machine can decode the largest image.

    Raises:
        UserError: it cannot.
    """
    needed = (decoding_bytes(max_pixels) or 0) / 2**30
    if needed > memory_gib:
        raise UserError(
            f"--max-pixels {max_pixels} needs up to {needed:.1f} GiB for an image, and the largest machine has "
            f"{memory_gib:.1f} GiB for it: give a smaller limit"
        )


def machine_memory_gib() -> float:
    """Memory of this machine that is available now, in GiB; infinite where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            (line,) = (line for line in lines if line.startswith("MemAvailable"))
        return int(line.split()[1]) / 2**20
    except (OSError, ValueError):
        return math.inf


def num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(nodes: Sequence[Node], num_actors: int | None = None, needs: Needs = ANY_MACHINE) -> Plan:
    """Divide the cluster between model actors and decoding.

    Args:
        nodes: the machines.
        num_actors: number requested by the user; None to use all resources.
        needs: resources of one actor.

    Raises:
        UserError: the job, or this number of actors, does not fit.
    """
    if num_actors is not None and num_actors < 1:
        raise UserError(f"num_actors must be at least 1, got {num_actors}")
    cpus = sum(node.cpus for node in nodes)
    if cpus < 2 * SMALLEST_TASK_CPUS:
        raise UserError(
            f"the cluster has {cpus:g} CPUs for tasks, at least 1 is needed: half for the model, half for decoding. "
            "Give --num-cpus (and --num-gpus) to wait for further machines"
        )
    if needs.cpus is not None:
        return _with_small_actors(nodes, num_actors or 1, needs.cpus)
    if needs.uses_gpu and any(node.gpus >= 1 for node in nodes):
        return _with_gpus(nodes, num_actors)
    return _without_gpus(nodes, num_actors, needs.memory_gib)


def _with_small_actors(nodes: Sequence[Node], num_actors: int, cpus: float) -> Plan:
    """Give actors that mostly wait for a server a few CPUs, and decoding all others."""
    smallest = min(node.cpus for node in nodes)
    actor_cpus = _floor(min(cpus, smallest / 2))
    left = sum(node.cpus for node in nodes) - num_actors * actor_cpus
    if left < SMALLEST_TASK_CPUS:
        raise ValueError(
            f"{num_actors} actors leave {max(0.0, left):g} CPUs for decoding: ask for fewer with --num-actors"
        )
    decode_cpus = 1.0 if left >= 2 else SMALLEST_TASK_CPUS
    return Plan(num_actors, actor_cpus, 0, max(1, round(cpus)), decode_cpus, max(1, int(left / decode_cpus)))


def _with_gpus(nodes: Sequence[Node], asked: int | None) -> Plan:
    gpu_nodes = [node for node in nodes if node.gpus >= 1]
    num_gpus = sum(int(node.gpus) for node in gpu_nodes)
    if asked is not None and asked > num_gpus:
        raise UserError(f"{asked} actors were asked for, but the cluster has {num_gpus} GPUs: ask for at most that")
    num_actors = asked or num_gpus
    # Feeding a GPU takes a CPU, but every machine must keep one for decoding.
    scarcest = min((node.cpus - 1) / int(node.gpus) for node in gpu_nodes)
    actor_cpus = 1.0 if scarcest >= 1 else 0.25
    left = sum(node.cpus for node in nodes) - num_actors * actor_cpus
    decode_cpus = 1.0 if left >= 1 else SMALLEST_TASK_CPUS
    if left < SMALLEST_TASK_CPUS:
        raise UserError(
            f"{num_actors} GPU actors take {num_actors * actor_cpus:g} CPUs and leave {left:g} for decoding: ask for "
            "fewer with --num-actors, or add CPUs"
        )
    return Plan(num_actors, actor_cpus, 1, max(1, int(actor_cpus)), decode_cpus, int(left / decode_cpus))


def _without_gpus(nodes: Sequence[Node], asked: int | None, actor_gib: float) -> Plan:
    usable = [node for node in nodes if node.cpus >= SMALLEST_TASK_CPUS]
    largest = max(node.cpus for node in usable)
    if asked is None:
        # The smallest machine that counts sets an actor's size; larger machines hold several.
        smallest = min((node for node in usable if node.cpus >= min(2, largest)), key=lambda node: node.cpus)
        wanted = max(1, min(LARGEST_ACTOR_CPUS, max(_smallest_share(node, actor_gib) for node in usable)))
        share = smallest.cpus / max(1, int(smallest.cpus // wanted))
        num_actors = sum(int(node.cpus // share) for node in usable)
    else:
        share = min(largest, sum(node.cpus for node in usable) / asked)
        num_actors = asked
    actor_cpus = max(min(ACTOR_SHARE * share, share - SMALLEST_TASK_CPUS), share / 2)
    # Machines cannot share their free CPUs, so an actor's share may have to shrink until all fit.
    while actor_cpus >= SMALLEST_ACTOR_CPUS:
        actor_cpus = _floor(actor_cpus)
        room = _room(usable, num_actors, actor_cpus)
        if room >= min(SMALLEST_TASK_CPUS, largest / 4):
            needed = min(SMALLEST_TASK_CPUS, min(node.cpus for node in usable) / 4)
            actor_cpus, least = _never_filling(actor_cpus, usable, num_actors, needed)
            decode_cpus = _floor(min(SMALLEST_TASK_CPUS, least))
            left = sum(node.cpus for node in usable) - num_actors * actor_cpus
            return Plan(num_actors, actor_cpus, 0, max(1, round(share)), decode_cpus, max(1, int(left / decode_cpus)))
        actor_cpus *= 0.9
    total = sum(node.cpus for node in usable)
    raise UserError(
        f"{num_actors} actors do not fit into {total:g} CPUs with decoding beside them: ask for fewer with --num-actors"
    )


def _smallest_share(node: Node, actor_gib: float) -> float:
    """Return the CPUs of an actor such that a machine does not hold too many copies of the model."""
    return node.cpus / max(1, int(min(ACTORS_PER_MACHINE, node.memory_gib / actor_gib)))


def _room(nodes: Sequence[Node], num_actors: int, actor_cpus: float) -> float:
    """Return the free CPUs of the emptiest machine after spreading the actors evenly; -1 if they do not fit."""
    free = [node.cpus for node in nodes]
    for _ in range(num_actors):
        emptiest = free.index(max(free))
        free[emptiest] -= actor_cpus
        if free[emptiest] < 0:
            return -1
    return max(free)


def _never_filling(actor_cpus: float, nodes: Sequence[Node], num_actors: int, needed: float) -> tuple[float, float]:
    """Return the closest actor size with which no machine can be filled completely, and the free CPUs of the fullest
    one.

    When a machine is lost, its actors move to the others, as many as fit. A machine that they filled completely could
    not decode; if it was the last one, the actors would wait forever.
    """
    hundredths = round(100 * actor_cpus)
    for distance in range(hundredths):
        for size in (hundredths + distance, hundredths - distance):
            room = _room(nodes, num_actors, size / 100)
            least = min([room, *(_left(node, num_actors, size) for node in nodes)])
            if least >= needed:
                return size / 100, least
    return actor_cpus, _room(nodes, num_actors, actor_cpus)


def _left(node: Node, num_actors: int, hundredths: int) -> float:
    """Return the free CPUs of a machine that holds as many of the actors as fit."""
    cpus = round(100 * node.cpus)
    return (cpus - min(num_actors, cpus // hundredths) * hundredths) / 100


def _floor(cpus: float) -> float:
    """Round down to hundredths of a CPU; Ray counts ten-thousandths."""
    return math.floor(cpus * 100 + 1e-9) / 100
