"""Text encoders: the small ones of bytes and words, and Qwen."""
