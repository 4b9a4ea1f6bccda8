"""Decode picture files."""
