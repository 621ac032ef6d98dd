"""Plug-ins for the tools that load models."""
