"""Controls that bound what a better world model could gain."""
