"""What `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]` means."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ..errors import BadDescription
from . import is_digest
from .refs import VERSION

HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?", re.ASCII
)
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
"""Both as the OCI distribution specification has them."""
FORM = "HOST/REPOSITORY:TAG, as in registry.example.org/models/iris:1.0"


@dataclass(frozen=True)
class Remote:
    """A place in a registry."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def parse_remote(text: str) -> Remote:
    """Take it apart. Raises BadDescription; also where the host is left out, since which one would be meant is a guess."""
    place, at, digest = text.removeprefix("oci://").partition("@")
    host, _, rest = place.partition("/")
    repository, colon, tag = rest.partition(":")
    if at and not is_digest(digest):
        raise BadDescription(f"{text!r}: after @ a digest belongs: sha256: and 64 hexadecimal digits.")
    if not HOST.fullmatch(host) or not (":" in host or "." in host or host == "localhost"):
        raise BadDescription(f"{text!r} names no registry.", f"Write {FORM}.")
    if not REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise BadDescription(
            f"{text!r}: {repository!r} can't be a repository (lower case only).", f"Write {FORM}."
        )
    if colon and not VERSION.fullmatch(tag):
        raise BadDescription(f"{text!r}: {tag!r} can't be a tag.", f"Write {FORM}.")
    return Remote(host, repository, tag if colon else None, digest if at else None)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, to which plain HTTP is no risk."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
    if name.lower() == "localhost" or name.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
