"""LIBERO, LIBERO-plus and LIBERO-Pro, simulated in an interpreter of their own."""
