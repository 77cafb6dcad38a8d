"""A Python environment with the project's dependencies and without the project, as on a cluster's machines."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with all that is installed here but captionlib; the path of its Python."""
    venv.create(folder, with_pip=False)
    target = next((folder / "lib").glob("python3*")) / "site-packages"
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        # Its metadata and the import hook of an editable installation; hooks of others do not matter here.
        if "captionlib" not in entry.name and entry.suffix != ".pth" and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    python = folder / "bin" / "python"
    check = "import importlib.metadata as m, importlib.util as u\ntry: m.version('captionlib')\n" + (
        "except m.PackageNotFoundError: print(u.find_spec('captionlib'))"
    )
    there = subprocess.run([python, "-I", "-c", check], cwd=folder, capture_output=True, text=True, check=True)
    assert there.stdout == "None\n", f"captionlib is installed in the environment that was to lack it: {there.stdout}"
    return python


def copy_source(folder: Path) -> Path:
    """The source alone, as a submitted working directory has it."""
    for package in ("captionlib", "jobs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def environment_variables(python: Path, ray_folder: str, home: Path) -> dict[str, str]:
    """All of them, so that nothing is inherited that would lead to an installation."""
    assert python.parent != Path(sys.executable).parent
    return {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(home),
        "CAPTIONLIB_CACHE": str(home / "cache"),
        "RAY_TMPDIR": ray_folder,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
