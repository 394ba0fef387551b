"""The published releases: names, settings, generation and cost."""
