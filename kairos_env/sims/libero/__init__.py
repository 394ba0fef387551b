"""LIBERO and LIBERO-plus, simulated in an interpreter of their own."""
