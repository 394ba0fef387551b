"""Frames to latents and back: the small image tokenizer, and Wan's video VAE."""
