"""From the waist to bytes. Never imports Pyro; `codec`, `file` and `runner` need numpy and constriction alone."""
