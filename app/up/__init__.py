"""`nupes up`: the whole service on one machine, from one data folder."""

from app.up.command import up

__all__ = ["up"]
