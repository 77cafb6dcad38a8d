"""Settings of how inputs are fetched from buckets and web servers. All batch jobs share these flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from captionlib.errors import UserError
from captionlib.ranges import NOT_NEGATIVE, at_least, check_ranges
from captionlib.version import __version__

DEFAULT_USER_AGENT = f"captionlib/{__version__}"


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """How inputs are fetched from buckets and web servers. The output is not affected."""

    anonymous: bool = False
    """Read the buckets of the inputs without credentials (public buckets)."""
    requester_pays: bool = False
    """Agree to pay for reading the buckets of the inputs (requester-pays buckets)."""
    user_agent: str = DEFAULT_USER_AGENT
    """User agent that is sent to web servers."""
    requests_per_host: int = 32
    """Maximum number of concurrent requests to one web server, over all processes."""
    max_redirects: int = 10
    """Maximum number of redirects for one URL."""
    max_megabytes: Annotated[int, arg(metavar="MB")] = 256
    """Maximum size of a response body from a web server; a larger one is an error of its image."""

    def __post_init__(self) -> None:
        check_ranges(self, "--", requests_per_host=at_least(1), max_megabytes=at_least(1), max_redirects=NOT_NEGATIVE)
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise UserError(f"--user-agent must be printable ASCII, got {self.user_agent!r}")
