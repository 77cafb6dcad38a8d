"""Reads and decodes the images of a chunk concurrently, and decides which are retried if they cannot be fetched."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from captionlib.images.decode import ImageDecodeError
from captionlib.images.transforms import ImageTransform
from captionlib.masking import masked
from captionlib.storage.errors import (
    AccessDenied,
    HostUnknown,
    HostUnreachable,
    InputFault,
    RequestFailed,
    TransportFault,
)
from captionlib.storage.paths import is_local
from captionlib.storage.read import input_access
from jobs.batch.decoding_deadline import DecodingDeadline
from jobs.inputs.listing import ImageRef
from jobs.inputs.reader import ImageReader
from jobs.outputs import schemas

READ_THREADS_URLS = 64
"""A list of URLs has hosts that answer after seconds, and names that a resolver looks up for as long."""
STRAGGLERS, STRAGGLER_SECONDS = 0.25, 1.0
"""When nothing has come for so many seconds, at most this share of a chunk's images is tried again later."""
READ_THREADS_REMOTE = 16
"""A GET request mostly waits; a dozen or two concurrent requests keep one decoding task busy."""


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of an image, or the reason why there are none."""

    pixels: np.ndarray | None = None
    """HWC uint8."""
    width: int | None = None
    height: int | None = None
    error: str | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    fault: TransportFault | None = None
    """Why it could not be fetched."""


@dataclass(frozen=True)
class ChunkImages:
    """Reads and decodes the images of a chunk."""

    transform: ImageTransform
    threads: int
    """Number of images that are decoded concurrently."""
    image_column: str | None
    """Image column of Parquet files."""
    max_pixels: int

    def read(self, places: list[ImageRef], deadline: DecodingDeadline, *, is_last: bool) -> list[DecodedImage]:
        """Read and decode images, in order. Those that cannot be fetched have a `fault`.

        Args:
            deadline: for decoding each image.
            is_last: wait for images of hosts that have not answered yet, because they are not retried.

        Raises:
            AccessDenied: a storage rejects the credentials.
        """
        # Many reads may wait at once, but only `threads` images are decoded at once: each may take 0.5 GB.
        decoding = threading.Semaphore(self.threads)
        lost: list[TransportFault] = []  # faults of the storage; web servers are tracked by `captionlib.storage.hosts`
        give_up = threading.Event()

        def read(place: ImageRef) -> DecodedImage:
            from_web = is_url(place)
            if give_up.is_set() or (lost and not from_web):
                # The chunk has failed already, or its storage has: do not wait for a dead server once per image.
                return _put_off(lost[0] if lost else TransportFault("the chunk was given up"))
            try:
                image = self._read_one(reader, place, decoding, deadline)
            except BaseException:
                give_up.set()
                raise
            if image.fault is not None and not from_web:
                lost.append(image.fault)
            return image

        # A Parquet file is read row after row; all else that is remote, many at once.
        at_once = any(not is_local(place.path) and place.row is None for place in places)
        num_threads = max(self.threads, READ_THREADS_REMOTE) if at_once else self.threads
        are_urls = all(map(is_url, places))
        if are_urls:
            num_threads = max(self.threads, READ_THREADS_URLS)
        with ImageReader(self.image_column) as reader:
            pool = ThreadPoolExecutor(num_threads)
            try:
                reads = [pool.submit(read, place) for place in places]
                if are_urls and not is_last:
                    _wait_for_most(reads, places)
                    late = TransportFault("the host has not answered yet")
                    images = [done.result() if done.done() else _put_off(late) for done in reads]
                else:
                    images = [done.result() for done in reads]
            finally:
                # Threads that wait for a name or a connection end by themselves, and note what became of the host.
                pool.shutdown(wait=not are_urls, cancel_futures=True)
        refused = [image.error for image in images if image.error and image.error.startswith("PermissionDenied")]
        # A storage has one set of permissions; web servers each have their own, and many reject crawlers.
        if len(refused) == len(images) > 1 and not any(map(is_url, places)):
            raise AccessDenied(
                f"none of {len(images)} images may be read: {refused[0]}. Check the credentials and the permissions"
            )
        return images

    def _read_one(
        self, reader: ImageReader, place: ImageRef, decoding: threading.Semaphore, deadline: DecodingDeadline
    ) -> DecodedImage:
        started = time.monotonic()
        try:
            data = reader.read(place)
        except InputFault as fault:
            return DecodedImage(error=masked(str(fault)), read_seconds=time.monotonic() - started)
        except TransportFault as fault:
            return _put_off(fault, time.monotonic() - started)
        read_seconds = time.monotonic() - started
        with decoding:
            started = time.monotonic()
            try:
                decoded = deadline.call(lambda: self.transform(data, self.max_pixels))
            except ImageDecodeError as fault:
                return DecodedImage(
                    error=str(fault), read_seconds=read_seconds, decode_seconds=time.monotonic() - started
                )
            return DecodedImage(
                decoded.pixels, decoded.width, decoded.height, None, read_seconds, time.monotonic() - started
            )


def settle(images: list[DecodedImage], places: list[ImageRef], canaries: Sequence[str]) -> list[DecodedImage]:
    """Decide whether images that could not be fetched are deferred or become rows with an error.

    Raises:
        TransportFault: no image could be fetched, and no canary shows that the network is working.
    """
    faults = [image.fault for image in images if image.fault is not None]
    final: type[TransportFault] | None = None
    if faults and is_network_there(canaries):
        final = TransportFault
    elif faults and answered_url(images, places) is not None:
        final = HostUnknown  # the network is working now, so that this host needs no second attempt
    if final is not None:
        images = [
            DecodedImage(error=describe_fault(image.fault), read_seconds=image.read_seconds)
            if isinstance(image.fault, final) and is_url(place)
            else image
            for image, place in zip(images, places, strict=True)
        ]
    elif len(faults) == len(images) > 0:
        raise TransportFault(describe_fault(faults[0]))
    return images


def is_url(place: ImageRef) -> bool:
    """Whether an image is a file of its own on a web server."""
    return place.shard is None and place.path.startswith(("http://", "https://"))


def _put_off(fault: TransportFault, read_seconds: float = 0.0) -> DecodedImage:
    """An image that is tried again."""
    return DecodedImage(error=f"{schemas.DEFERRED}{describe_fault(fault)}", fault=fault, read_seconds=read_seconds)


def _wait_for_most(reads: Sequence[Future[DecodedImage]], places: Sequence[ImageRef]) -> None:
    """Wait for the images of a chunk, but not for the last ones on hosts that have never answered.

    Asking a resolver for a name that does not exist may take ten seconds, in which a whole chunk would stand still.
    """
    hosts = input_access().http
    pending = set(reads)
    while pending:
        done, pending = wait(pending, timeout=STRAGGLER_SECONDS, return_when=FIRST_COMPLETED)
        if not done and len(pending) <= len(reads) * STRAGGLERS:
            late = [place for read, place in zip(reads, places, strict=True) if read in pending]
            if not any(hosts.has_answered(place.path) for place in late):
                return


def is_network_there(canaries: Sequence[str]) -> bool:
    """Whether the server of any canary answers."""
    return any(input_access().http.is_reachable(url) for url in canaries)


def describe_fault(fault: TransportFault) -> str:
    """Format a transport fault as the error of a row."""
    if not isinstance(fault, (HostUnreachable, RequestFailed)):
        return masked(str(fault))
    kind = "HostUnreachable" if isinstance(fault, HostUnreachable) else "HttpError"
    return f"{kind}: {fault.filename}: {fault.strerror}"


def answered_url(images: Sequence[DecodedImage], places: Sequence[ImageRef]) -> str | None:
    """Return the URL of an image that was fetched, if there is one."""
    came = (place.path for image, place in zip(images, places, strict=True) if is_url(place) and image.error is None)
    return next(came, None)
