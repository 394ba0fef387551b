"""The model: video DiT, action expert, tokenizer, streaming state. Knows no Gymnasium env, simulator or dataset format."""
