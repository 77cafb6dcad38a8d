"""Errors of reading and writing, and retries with exponential back-off.

An **input fault** (not found, permission denied, too large) is a property of the image and becomes a row with an
error. A **transport fault** (time-out, connection reset, 5xx, truncated body) is temporary: the access is retried with
exponential back-off, and after the last attempt the image is deferred.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from captionlib.errors import CaptionlibError, ImageError

T = TypeVar("T")
ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 16.0
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EREMCHG}
# Error codes that concern the credentials and not one object: they are wrong or have expired.
_BAD_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "TokenRefreshRequired",
}


class InputFault(ImageError):
    """The image itself cannot be read: it does not exist, permission is denied, or it is too large."""


class StorageError(CaptionlibError, OSError):
    """A storage cannot be used at present. No image is at fault."""


class TransportFault(StorageError):
    """The connection to the storage failed; the image is not at fault. Raised after the last retry."""


class HostUnreachable(TransportFault):
    """A web server that cannot be reached. An immediate retry would not help; other servers may answer."""


class HostUnknown(HostUnreachable):
    """A web server whose name does not exist, or whose certificate is not valid: a later retry would hardly help."""


class RequestFailed(TransportFault):
    """A web server that was reached, but gave no valid answer."""


class AccessDenied(StorageError):
    """The storage rejects the credentials. Retrying cannot help, and no image is at fault."""


def with_retries(action: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Call `action`, and retry transport faults with exponential back-off and full jitter.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError, HostUnreachable, and all exceptions of the project that
            are no TransportFault: immediately.
        TransportFault: after the last attempt, with the message of the last fault.
    """
    for attempt in range(attempts):
        try:
            return action()
        except Exception as error:
            known = classify_storage_error(error)
            if not isinstance(known, TransportFault):
                raise known from error
            if isinstance(known, HostUnreachable) or attempt == attempts - 1:
                raise known from error
            longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
            # Jitter, so that the threads of all workers do not retry a busy server at the same moment.
            time.sleep(random.uniform(longest / 4, longest))
    raise AssertionError("unreachable")


def classify_storage_error(error: Exception) -> Exception:
    """Convert an exception of a storage library into FileNotFoundError, PermissionError, IsADirectoryError,
    `AccessDenied` or `TransportFault`.
    """
    if isinstance(error, (CaptionlibError, FileNotFoundError, IsADirectoryError)):
        return error
    if isinstance(error, OSError) and error.errno in _NOT_THERE:
        return FileNotFoundError(error.errno, str(error))
    if isinstance(error, PermissionError):
        code = _storage_code(error)
        if code in _BAD_CREDENTIALS:
            remedy = "set the clock of this machine" if code == "RequestTimeTooSkewed" else "renew them"
            return AccessDenied(errno.EACCES, f"the storage refuses the credentials ({code}: {error}): {remedy}")
        return error
    if type(error).__name__ == "NoCredentialsError":
        return AccessDenied(errno.EACCES, f"no credentials for the storage ({error}): set them as its client expects")
    status = getattr(error, "status", None)  # set by aiohttp
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, str(error))
    if status in (401, 403):
        return PermissionError(errno.EACCES, str(error))
    # Any other error counts as a transport fault, because retrying an image is safe and declaring it damaged is not.
    return TransportFault(errno.EIO, f"{type(error).__name__}: {error}"[:500])


def _storage_code(error: BaseException | None) -> str:
    """Return the error code of an object store from the exception that s3fs derived from it."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
