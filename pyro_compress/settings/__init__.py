"""What determines a fit and a compression: every setting once, with its type, default, range, unit and help."""

from pyro_compress.settings.compress import CompressConfig, FineTune, Goal
from pyro_compress.settings.data import STORED, DataConfig, ReadConfig
from pyro_compress.settings.fit import COMPILE_STEPS, BaselineConfig, FitConfig, NetworkConfig, PosteriorConfig

__all__ = [
    "COMPILE_STEPS",
    "STORED",
    "BaselineConfig",
    "CompressConfig",
    "DataConfig",
    "FineTune",
    "FitConfig",
    "Goal",
    "NetworkConfig",
    "PosteriorConfig",
    "ReadConfig",
]
