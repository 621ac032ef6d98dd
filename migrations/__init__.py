"""One lineage of schema changes, the same on SQLite and PostgreSQL."""

from __future__ import annotations

HEAD = "0011"
"""The newest revision: what `/readyz` expects to find in the database."""
