"""Exported files: written, checked against their source, opened."""
