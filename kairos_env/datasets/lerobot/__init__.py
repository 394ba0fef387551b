"""LeRobot's dataset format, v2.0 to v3: read without the library, and written."""
