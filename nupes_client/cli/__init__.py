"""The `nupes` command."""

from nupes_client.cli.application import main

__all__ = ["main"]
