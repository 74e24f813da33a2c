"""Secrets that systemd hands to the daemon (LoadCredential=), instead of environment and configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gpulockd.errors import ConfigError

REDIS_URL = "redis.url"
API_TOKEN = "api.token"

NONE = "none"
"""What the unit puts in the place of a credential that does not exist."""


def credential(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return what the credential `name` says, or None if this process has none of that name.

    :raises ConfigError: if it is there and cannot be read
    """
    folder = (os.environ if environ is None else environ).get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            said = file.read().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"the credential {name} cannot be read: {wrong}") from None
    return None if said in ("", NONE) else said
