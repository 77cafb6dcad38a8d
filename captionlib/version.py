"""The version of the project."""

__version__ = "0.1.0"
"""Not read from the package's metadata, which only an installed package has: the code also runs from a folder."""
