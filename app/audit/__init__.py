"""Who did what, from where, and when."""
