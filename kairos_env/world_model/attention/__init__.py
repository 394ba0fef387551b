"""Windowed softmax attention: its patterns, and the kernels that compute it."""
