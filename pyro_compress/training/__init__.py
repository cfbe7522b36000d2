"""What trains without Pyro, and what every fit shares: feed, checkpoints, guards."""
