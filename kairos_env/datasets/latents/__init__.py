"""Latents encoded once, and the windows of a training batch over them."""
