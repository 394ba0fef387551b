"""Episodes made, replayed, encoded and exported."""
