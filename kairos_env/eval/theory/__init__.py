"""The model's memory, measured against the theory."""
