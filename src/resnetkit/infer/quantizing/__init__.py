"""Networks in 8-bit integers, and what a faster way of computing may cost in accuracy."""
