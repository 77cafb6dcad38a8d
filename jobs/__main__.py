"""All jobs as one command: `captionlib caption …`, `captionlib train …`, or `python -m jobs caption …`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from captionlib.version import __version__
from jobs.cli.pipes import quiet_when_unread

COMMANDS = {
    "caption": "Caption every image of a folder, a bucket or a list.",
    "train": "Train a caption decoder on features or images.",
    "extract-features": "Run an encoder over images once, for many trainings.",
    "merge": "Merge the outputs of runs with --shard.",
    "evaluate": "Score captions against references.",
    "train-detector": "Train the word detector of a checkpoint, which re-ranks its captions.",
    "calibrate": "Teach a checkpoint how far to trust its captions.",
    "benchmark": "Measure this machine on your images, and estimate hours and cost.",
    "quantize": "Convert the encoder of a checkpoint to 8-bit integers.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        module = importlib.import_module(f"jobs.{name.replace('-', '_')}")
        module.PROG = f"captionlib {name}"  # type: ignore[attr-defined]  # for --help and messages
        code: int = module.main(arguments[1:])
        return code
    with quiet_when_unread():
        if name == "--version":
            print(f"captionlib {__version__}")
            return 0
        print("usage: captionlib COMMAND …        (captionlib COMMAND --help lists its flags)\n")
        print("\n".join(f"  {command:18}{text}" for command, text in COMMANDS.items()))
    if name in ("", "-h", "--help", "help"):
        return 0 if name else 2
    print(f"captionlib: there is no command {name}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
