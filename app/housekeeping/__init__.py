"""Deleting what has expired and what nobody needs."""
