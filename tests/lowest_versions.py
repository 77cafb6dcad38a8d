"""Prints the lowest version of every package that pyproject.toml allows, as constraints for pip.

python tests/lowest_versions.py > constraints.txt
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    sys.exit("Python 3.11 or newer is needed, for tomllib")

REQUIREMENT = re.compile(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)$")


def main() -> None:
    """Print `name==version` of each requirement, the development tools excepted."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = {name: packages for name, packages in project["optional-dependencies"].items() if name != "dev"}
    lowest = {}
    for requirement in [*project["dependencies"], *(text for packages in extras.values() for text in packages)]:
        if match := REQUIREMENT.match(requirement):
            lowest[match[1].lower()] = match[2]
        elif not requirement.startswith("captionlib["):
            sys.exit(f"{requirement} in pyproject.toml has no lower bound of the form name>=version")
    print("\n".join(f"{name}=={version}" for name, version in sorted(lowest.items())))


if __name__ == "__main__":
    main()
