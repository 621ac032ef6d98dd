"""Wire models: the one truth that the API, the worker, the command line and the docs share. Pydantic only."""
