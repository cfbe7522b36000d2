"""A compressed network as WebAssembly: the C export built for browsers and node, and a module that loads it."""
