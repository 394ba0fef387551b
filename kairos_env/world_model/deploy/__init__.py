"""Faster, smaller, on many devices: compilation, quantisation, parallelism."""
