"""Jobs: create, read, cancel, events, layers, and the one function that changes a status."""
