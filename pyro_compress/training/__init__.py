"""What trains without Pyro, and what every fit shares: minibatches, checkpoints, guards."""
