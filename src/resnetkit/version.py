"""The version of this package, in a module of its own: modules read it without importing the package's root."""

__version__ = "0.1.0"
