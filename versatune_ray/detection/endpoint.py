"""Where a judge behind HTTP answers, and what a configuration may ask for: it may come from a
stranger, and must neither carry keys away nor reach a machine's own services.

Two environment variables of the cluster, both lists with commas, allow more or less:
``VERSATUNE_ALLOWED_KEYS`` names further variables that hold a judge's key;
``VERSATUNE_ALLOWED_HOSTS`` names the hosts (``host`` or ``host:port``) that may be asked at all
besides this machine, with http or https.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from versatune_ray.errors import UserError, printable

# of clouds that do not keep to the link-local range
_METADATA = {"100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"}
_METADATA_NAMES = ("metadata", "metadata.google.internal", "instance-data")


@dataclass(frozen=True)
class Endpoint:
    """Where the judge answers.

    Attributes:
        url: up to what comes before ``/chat/completions``, such as ``http://localhost:8000/v1``.
        model: the name that the endpoint knows it by.
        key_variable: environment variable of the Ray workers that holds the key; unset where the
            server wants none.
        concurrency: requests at the same time, of each actor.
        timeout: seconds that one attempt may wait for the connection and for each piece of the
            reply.
        retries: further attempts after a time-out, a lost connection, 408, 409, 429 or 5xx; each
            waits as long as the server says (up to 2 minutes), else 0.5 s, 1 s, 2 s and so on up to
            8 s.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 32
    timeout: float = 60.0
    retries: int = 6

    def check(self) -> None:
        """Whether this machine's environment lets a configuration ask there with that key. A name
        that leads elsewhere later is not seen.

        Raises:
            UserError: another kind of variable, no URL, plain http to another machine, a host that
                is not allowed, or an address that serves a machine its own credentials.
        """
        variable = self.key_variable
        if not variable.endswith("_API_KEY") and variable not in _listed("VERSATUNE_ALLOWED_KEYS"):
            raise UserError(
                f"detection.judge.http.key_variable: {variable!r} does not end in _API_KEY, and "
                f"VERSATUNE_ALLOWED_KEYS in the environment of the cluster does not name it"
            )
        key = "detection.judge.http.url"
        try:
            parts = urlsplit(self.url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            parts, host, port = urlsplit(""), "", None
        if parts.scheme not in ("http", "https") or not host:
            raise UserError(
                f"{key}: {self.url!r} does not begin with http:// or https:// and a host"
            )
        addresses = _addresses(host)
        if host in _METADATA_NAMES or any(map(_is_metadata, addresses)):
            raise UserError(
                f"{key}: {printable(host)} serves a machine its own credentials; it is no judge"
            )
        if host == "localhost" or (
            addresses and all(one.is_loopback or one.is_unspecified for one in addresses)
        ):
            return
        allowed = _listed("VERSATUNE_ALLOWED_HOSTS")
        if allowed and not {host, f"{host}:{port}"} & allowed:
            raise UserError(
                f"{key}: VERSATUNE_ALLOWED_HOSTS in the environment of the cluster does not name "
                f"{printable(host)}"
            )
        if not allowed and parts.scheme != "https":
            raise UserError(
                f"{key}: {printable(host)} is another machine, and http would send texts and key "
                f"in the clear; use https, or name the host in VERSATUNE_ALLOWED_HOSTS in the "
                f"environment of the cluster"
            )

    def key(self) -> str:
        """The key, or ""; read where requests are made and nowhere else, so that it never travels.

        Raises:
            UserError: the variable may not be read, or holds what is no key.
        """
        self.check()
        key = os.environ.get(self.key_variable, "").strip()
        # What a header cannot carry would fail each request; what is quoted differently in each
        # message could not be redacted.
        if re.search(r"[^!-~]|[\"'\\]", key):
            raise UserError(
                f"{self.key_variable}: this environment variable of the workers holds no key, but "
                f"other text"
            )
        return key


def _listed(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}


def _addresses(host: str) -> list[IPv4Address | IPv6Address]:
    """What ``host`` stands for, as the system resolves it: also ``2852039166`` and ``0x7f.1``."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # asking it will say so
        return []
    addresses = [ip_address(str(address[0]).partition("%")[0]) for *_, address in found]
    return [getattr(one, "ipv4_mapped", None) or one for one in addresses]


def _is_metadata(address: IPv4Address | IPv6Address) -> bool:
    return address.is_link_local or str(address) in _METADATA
