"""The version of the package: semantic versioning, read by the build too."""

__version__ = "0.1.0"
