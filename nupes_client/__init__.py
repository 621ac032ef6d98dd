"""The `nupes` command and the HTTP SDK."""
