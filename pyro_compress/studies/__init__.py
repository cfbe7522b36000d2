"""Several runs compared: `pyro-compress compare`."""
