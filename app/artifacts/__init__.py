"""Artifacts: the files that succeeded jobs leave, and their bytes."""
