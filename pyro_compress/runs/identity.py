"""What a fit is called by: a hash of its whole configuration, so that a changed default is another fit.

Earlier versions hashed what differs from the defaults. What they left is found under the name that they gave it, and
taken where the configuration that is stored beside it is the one that is asked for; otherwise it is made anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyro_compress.settings import FitConfig
from pyro_compress.settings.declared import having

SCHEMA = 2
"""Raised when the same configuration comes to mean another fit: what lies there under the number before is not used."""
FILES = having(FitConfig, path=True, identity=True)
"""Options that may name a file, which counts by its content."""


def identity(config: FitConfig) -> dict[str, Any]:
    """What sets a configuration apart from the defaults, as JSON values; where and how fast it runs is left out."""
    plain = asdict(type(config)())
    return {key: value for key, value in _whole(config).items() if value != plain[key]}


def fingerprint(config: FitConfig) -> dict[str, Any]:
    """The whole configuration, a file that is named (or a run folder's posterior) told by its SHA-256."""
    return {"schema": SCHEMA} | _by_content(_whole(config))


def config_hash(config: FitConfig) -> str:
    """First twelve hexadecimal digits of the SHA-256 of the configuration, less what does not change the run."""
    return digest(fingerprint(config))


def earlier_hash(config: FitConfig) -> str:
    """The name that earlier versions gave it."""
    return digest(earlier_fingerprint(config))


def earlier_fingerprint(config: FitConfig) -> dict[str, Any]:
    """What earlier versions hashed: the difference from the defaults."""
    return _by_content(identity(config))


def differing(stored: Mapping[str, Any], config: FitConfig) -> list[str]:
    """Options in which a stored configuration differs from one that is asked for, with both values.

    One that the stored configuration does not know was added later: it counts as the default that it has now.

    Args:
        stored: fields of a `FitConfig`, as JSON or TOML values; those that are None may be missing.
        config: resolved.
    """
    plain, wanted = _whole(type(config)()), _whole(config)
    before = {key: stored.get(key, plain[key]) for key in wanted}
    return [
        f"{key} {before[key]!r}, now {value!r}"
        for key, value in wanted.items()
        if key not in FILES and _json(before[key]) != _json(value)
    ]


def digest(values: Any) -> str:
    """First twelve hexadecimal digits of the SHA-256 of JSON values."""
    return hashlib.sha256(_json(values).encode()).hexdigest()[:12]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _whole(config: FitConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name in having(type(config), identity=True)}


def _by_content(settings: dict[str, Any]) -> dict[str, Any]:
    for key in settings.keys() & set(FILES):
        named = Path(settings[key])
        if key == "init" and named.is_dir():
            named = named / "posterior.safetensors"
        if named.suffix and named.is_file():
            found = named.stat()
            settings[key] = _content(named, found.st_mtime_ns, found.st_size)
    return settings


@functools.cache
def _content(path: Path, changed: int, size: int) -> str:
    """SHA-256 of a file, taken once as long as time and size of its last change stay."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
