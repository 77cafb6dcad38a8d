"""Checks and cleans paths and URLs that a person typed."""

from __future__ import annotations

import os
import re

from jobs.storage.read import is_local

_PACKAGE = "/runtime_resources/working_dir_files/"


def check_paths_outlive_job(*paths: str) -> None:
    """Whatever a job reads and writes must outlive it.

    Raises:
        ValueError: a path lies in the package of `ray job submit`, as each relative path does there.
    """
    for path in paths:
        if is_local(path) and _PACKAGE in os.path.abspath(os.path.expanduser(path.removeprefix("file://"))):
            raise ValueError(
                f"{path} lies in the copy of the code that `ray job submit` makes for a job, and goes with it: give a "
                "URL such as s3://…, or the whole path of a folder that all machines share"
            )


def without_password(url: str) -> str:
    """A URL without `user:password@` and without its query, which may be a signature."""
    if "://" not in url:
        return url
    return re.sub(r"://[^/@]*@", "://", url).partition("?")[0]
