"""Programs without an operating system, which run an integer C export on emulated microcontrollers."""
