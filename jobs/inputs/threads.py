"""Lists several shards, and examines several files, concurrently: neither all at once nor one by one."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from captionlib.storage.errors import with_retries
from jobs.inputs.listing import ImageRef, Request

T = TypeVar("T")


def list_shards(
    shards: Iterable[str], index: Callable[[str], Iterator[ImageRef]], request: Request
) -> Iterator[ImageRef]:
    """List the images of each shard in order, except those of `request.known_shards`."""
    new = (shard for shard in shards if shard not in request.known_shards)
    if not request.shards_at_once:
        return itertools.chain.from_iterable(map(index, new))
    whole = in_threads(lambda path: with_retries(lambda: list(index(path))), new, request.shards_at_once)
    return itertools.chain.from_iterable(found for found, _ in whole)


def in_threads(action: Callable[[T], object], items: Iterable[T], at_once: int) -> Iterator[tuple]:
    """Yield (action(item), item) in order, with a bounded number of items in progress."""
    with ThreadPoolExecutor(at_once) as pool:
        ahead: collections.deque[tuple[Future, T]] = collections.deque()
        try:
            for item in items:
                ahead.append((pool.submit(action, item), item))
                if len(ahead) >= 2 * at_once:
                    future, first = ahead.popleft()
                    yield future.result(), first
            while ahead:
                future, first = ahead.popleft()
                yield future.result(), first
        finally:
            for future, _ in ahead:
                future.cancel()
