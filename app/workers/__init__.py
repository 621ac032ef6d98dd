"""Workers as their heartbeats show them."""
