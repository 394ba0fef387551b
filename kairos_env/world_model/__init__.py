"""The model: video DiT, action expert, tokenizer, streaming state. Knows no simulator and no dataset format."""
