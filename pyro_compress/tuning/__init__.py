"""Searching the settings of fit and compression together; only `storage` and `workers` import Optuna."""
