"""TLS on the TCP port, with the certificate and the key that `web.tls` names; the unix socket needs none."""

from __future__ import annotations

import os
import ssl

from gpulockd.errors import ConfigError
from gpulockd.settings import TlsBlock


def context_of(tls: TlsBlock) -> ssl.SSLContext | None:
    """Return what the port encrypts with, None for plain HTTP.

    :raises ConfigError: if one of the two files is not named, cannot be read, fits not, or others may read the key
    """
    if tls.certificate is None and tls.key is None:
        return None
    if tls.certificate is None or tls.key is None:
        missing = "certificate" if tls.certificate is None else "key"
        raise ConfigError(f"web.tls.{missing}: not named; TLS needs both files, certificate and key")
    for name, path in (("certificate", tls.certificate), ("key", tls.key)):
        _check_readable(f"web.tls.{name}", path)
    if os.stat(tls.key).st_mode & 0o077:
        raise ConfigError(f"web.tls.key: others may read {tls.key}; run: chmod 600 {tls.key}")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An encrypted key would ask for its password on the terminal.
        made.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as wrong:
        files = f"{tls.certificate} and {tls.key}"
        cure = "both must be PEM, belong together, and the key have no password"
        raise ConfigError(f"web.tls: {files} cannot be used ({wrong}); {cure}") from None
    return made


def _check_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except OSError as wrong:
        raise ConfigError(f"{name}: {path} cannot be read ({wrong.strerror}); correct the path or its mode") from None
