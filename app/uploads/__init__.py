"""Files sent to the service, one raw body each."""
