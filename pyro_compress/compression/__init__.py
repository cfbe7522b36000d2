"""From a posterior to integers: what goes, how precisely the rest stays, the search for the smallest file. No Pyro."""
