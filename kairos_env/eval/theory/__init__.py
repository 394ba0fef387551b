"""What the model's memory keeps, measured against the theory."""
