"""Training of tokenizer and world model."""
