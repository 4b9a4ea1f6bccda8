"""Tuning: measure the ways to compute a model on this machine, and keep the fastest in tune.json."""
