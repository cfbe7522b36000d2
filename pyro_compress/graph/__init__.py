"""Networks as data: operations, and what torch makes of them."""
