"""Curricula: stages of one training, declared, planned and run by the one trainer."""
