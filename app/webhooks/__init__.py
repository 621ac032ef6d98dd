"""Telling receivers of a tenant what its jobs do."""
