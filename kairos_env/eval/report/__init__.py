"""Rows as tables, comparisons and pages."""
