"""Video files: frames read exactly, and written."""
