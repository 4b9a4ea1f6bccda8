"""Quantizing: make networks that compute in 8-bit integers, and check the accuracy of faster precisions."""
