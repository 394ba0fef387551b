"""Captioned films of things that nobody's robot does, simulated in MuJoCo: moving bodies, and hands."""
