"""Checks and cleans paths and URLs that a person typed."""

from __future__ import annotations

import os
import re

from captionlib.errors import UserError

_PACKAGE = "/runtime_resources/working_dir_files/"


def is_local(path: str) -> bool:
    """Whether a path is on a local or mounted disk rather than a URL."""
    return "://" not in path or path.startswith("/")


def check_paths_outlive_job(*paths: str) -> None:
    """Check that no path lies in the working directory of a submitted Ray job, which Ray deletes after the job.

    Raises:
        UserError: a path lies there, as every relative path does under `ray job submit`.
    """
    for path in paths:
        if is_local(path) and _PACKAGE in os.path.abspath(os.path.expanduser(path.removeprefix("file://"))):
            raise UserError(
                f"{path} lies in the copy of the code that `ray job submit` makes for a job and deletes with it: "
                "give a URL such as s3://…, or the whole path of a folder that all machines share"
            )


_SECRETS = re.compile(
    # Parameters of AWS, Google and Azure signatures, and usual names of tokens; `key` only with a long value.
    r"(?i)(?<=[?&])([a-z_-]*(?:signature|credential|token|secret|password|passwd|pwd|authorization|api[_-]?key|"
    r"access[_-]?key(?:id)?|accessid|session[_-]?id)|sig|auth|key(?==[^&#\s]{20}))=[^&#\s'\"]+"
)
_USER = re.compile(r"(?<=://)[^/@\s'\"]*@")
MASK = "***"


def masked(text: str) -> str:
    """Mask the secrets of all URLs in a text: `user:password@`, and query parameters that sign or authorise.

    Everything that others than the job may read goes through this function: rows, exports, reports, logs, error
    messages, tags of metrics.
    """
    if "://" not in text:
        return text
    return _SECRETS.sub(rf"\1={MASK}", _USER.sub(f"{MASK}@", text))
