"""Reads S3 objects with Arrow's client, which needs a fifth of the CPU time of s3fs per object.

Endpoint and credentials are found as s3fs finds them. Objects that Arrow cannot read are left to s3fs, which gives the
better error message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0
STRIKES = 3
"""Number of consecutive objects that s3fs could read and Arrow could not, after which Arrow is disabled."""
DISABLED_SECONDS = 300.0
"""Seconds for which s3fs then reads alone: the storage may be overloaded, or incompatible with Arrow."""

ERROR_MESSAGES = (b"<?xml", b"<Error")
"""How the error messages of an S3 storage begin. With a status of 200, Arrow takes such a message for the object, and
pads it with zeros to the object's size; s3fs returns what came, whose length shows that it is not the object."""


class S3Objects:
    """Reads S3 objects with Arrow. Threads may share an instance.

    Args:
        anonymous: send no credentials.
        requester_pays: leave every object to s3fs, since Arrow does not support it.
    """

    def __init__(self, *, anonymous: bool = False, requester_pays: bool = False) -> None:
        self.anonymous, self.requester_pays = anonymous, requester_pays
        self._lock = threading.Lock()
        self._is_ready = False
        self._credentials: Any = None
        self._endpoint, self._region = "", ""
        self._frozen: Any = None
        self._filesystem: Any = None
        self._strikes = 0
        self._disabled_until = 0.0

    def read(self, path: str) -> bytes | None:
        """Read the object at s3://bucket/key; None if s3fs should read it instead."""

        def whole(filesystem: Any, key: str) -> bytes:
            with filesystem.open_input_stream(key) as stream:
                data: bytes = stream.readall()
            if data.startswith(ERROR_MESSAGES):
                raise ValueError("an error message instead of the object")
            return data

        return self._try(path, whole)

    def open(self, path: str) -> IO[bytes] | None:
        """Open the object at s3://bucket/key for random access; None if s3fs should open it instead."""
        return self._try(path, lambda filesystem, key: filesystem.open_input_file(key))

    def record_fallback(self) -> None:
        """Record that s3fs read an object that `read` or `open` could not."""
        self._strikes += 1
        if self._strikes >= STRIKES:
            self._strikes, self._disabled_until = 0, time.monotonic() + DISABLED_SECONDS

    def _try(self, path: str, action: Callable[[Any, str], T]) -> T | None:
        if self.requester_pays or time.monotonic() < self._disabled_until:
            return None
        try:
            filesystem = self._current()
            if filesystem is None:
                return None
            result = action(filesystem, path.partition("://")[2])
        except Exception:  # the caller then asks s3fs, which has better error messages
            return None
        self._strikes = 0
        return result

    def _current(self) -> Any:
        """Return Arrow's filesystem with the current credentials; None if there are none."""
        with self._lock:
            if not self._is_ready:
                self._find()
            if self.anonymous and self._endpoint:
                self._filesystem = self._filesystem or self._connect(None)
                return self._filesystem
            if self._credentials is None:
                return None
            frozen = self._credentials.get_frozen_credentials()  # renews expired credentials
            if frozen != self._frozen:
                self._filesystem = self._connect(frozen)
                self._frozen = frozen
            return self._filesystem

    def _find(self) -> None:
        """Find endpoint, region and credentials as every AWS client does: environment, ~/.aws, instance metadata."""
        import botocore.session
        import fsspec

        self._is_ready = True
        if fsspec.config.conf.get("s3"):  # these settings exist only in s3fs
            return
        session = botocore.session.get_session()
        meta = session.create_client("s3", region_name=session.get_config_variable("region") or "us-east-1").meta
        self._endpoint, self._region = meta.endpoint_url, meta.region_name
        self._credentials = session.get_credentials()

    def _connect(self, frozen: Any) -> Any:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        place = urlsplit(self._endpoint)
        is_aws = (place.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
        who = (
            {"anonymous": True}
            if frozen is None
            else {"access_key": frozen.access_key, "secret_key": frozen.secret_key, "session_token": frozen.token}
        )
        return S3FileSystem(
            **who,
            region=self._region,
            scheme=place.scheme,
            endpoint_override=None if is_aws else place.netloc + place.path.rstrip("/"),
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),  # `captionlib.storage.read` does the retries
        )
