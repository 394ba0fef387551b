"""Imagination beside recorded reality under the same actions."""
