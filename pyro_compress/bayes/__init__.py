"""Everything that samples: priors, posteriors, estimators, the SVI loop. The only package that imports Pyro."""
