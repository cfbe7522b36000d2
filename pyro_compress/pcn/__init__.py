"""The compressed-network file `.pcn`: written, read and run with numpy and the range coder, without torch or Pyro."""
