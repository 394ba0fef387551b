"""Recorded experience of any format, read lazily as `kairos_env.records.Episode`."""
