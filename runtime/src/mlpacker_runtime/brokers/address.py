"""Where a stream comes from or goes to, as one line: `kafka://host:9092/topic?option=value`.

    local:readings                    the embedded log of this machine
    file:rows.jsonl, -                a file; standard input or output
    kafka://h1:9092,h2:9092/readings  nats://host/plant.readings  redis://host/readings  amqp://host/readings
    mqtt://host/plant/+/readings

An `s` after the scheme means TLS (`kafkas://`, `mqtts://`, `rediss://`, `amqps://`, `natss://`); `ca`, `cert` and `key` name its
files. Options that hold a secret (see SECRETS) are references, `env:NAME` or `file:PATH`, and read only when they are used: an
address can be shown and logged. Standard library only.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from ..errors import BadDescription

SECRETS = ("password", "token", "key_password", "secret")
PLAIN = ("local", "file")
"""Schemes without a host."""
ENDS_IN_S = ("redis", "nats")
TLS = ("ca", "cert", "key", "key_password", "verify")


@dataclass(frozen=True)
class Address:
    """scheme: without the `s` of TLS. hosts: `(name, port)`, port 0 where none is given. path: the topic, unquoted."""

    scheme: str
    path: str
    hosts: tuple[tuple[str, int], ...] = ()
    user: str | None = None
    tls: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As it was written; it holds no secret."""
        query = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        if self.scheme == "-":
            return "-" + query
        path = quote(self.path, safe="/+#$*>.:-_")
        path = path.replace("#", "%23") if self.scheme != "mqtt" else path
        if self.scheme in PLAIN:
            return f"{self.scheme}:{path}{query}"
        hosts = ",".join((f"[{h}]" if ":" in h else h) + (f":{p}" if p else "") for h, p in self.hosts)
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        return f"{self.scheme}{'s' if self.tls else ''}://{user}{hosts}/{path}{query}"

    def option(self, name: str, default: str = "") -> str:
        return self.options.get(name, default)

    def number(self, name: str, default: int) -> int:
        """Raises BadDescription where the option is no whole number from 0."""
        text = self.options.get(name)
        if text is None:
            return default
        if not _is_number(text):
            raise BadDescription(f"{self}: {name} is a whole number, not {text[:20]!r}.")
        return int(text)

    def flag(self, name: str, default: bool = False) -> bool:
        text = self.options.get(name)
        if text is None:
            return default
        if text.lower() not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            raise BadDescription(f"{self}: {name} is on or off, not {text!r}.")
        return text.lower() in ("true", "yes", "on", "1")

    def secret(self, name: str) -> str | None:
        """The secret that an option refers to; None where there is no such option. Raises BadDescription."""
        reference = self.options.get(name)
        return None if reference is None else reveal(reference, f"{self}: {name}")

    def only(self, *known: str) -> None:
        """Raises BadDescription for an option that is not among these (nor TLS's, where TLS is on)."""
        for name in self.options:
            if name not in known and not (self.tls and name in TLS):
                raise BadDescription(
                    f"{self}: there is no option {name!r} here.",
                    f"There are {', '.join(sorted(known)) or 'none'}.",
                )

    def context(self) -> ssl.SSLContext | None:
        """How to do TLS; None without it. Raises BadDescription for files that can't be read."""
        if not self.tls:
            return None
        try:
            made = ssl.create_default_context(cafile=self.options.get("ca"))
            if not self.flag("verify", True):
                made.check_hostname = False
                made.verify_mode = ssl.CERT_NONE
            if "cert" in self.options:
                made.load_cert_chain(
                    self.options["cert"], self.options.get("key"), self.secret("key_password")
                )
        except (OSError, ssl.SSLError) as cause:
            raise BadDescription(f"{self}: TLS can't be set up: {cause}.") from cause
        return made


def reveal(reference: str, of: str) -> str:
    """`env:NAME` or `file:PATH` → the secret itself. Raises BadDescription, which never repeats a secret."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise BadDescription(f"{of}: the variable {name} is not set.")
        return os.environ[name]
    if kind == "file":
        try:
            return Path(name).read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as cause:
            raise BadDescription(f"{of}: {name} can't be read.") from cause
    raise BadDescription(f"{of} is a secret and can't stand here.", "Refer to it: env:NAME or file:PATH.")


def parse(text: str, schemes: Mapping[str, object] | None = None) -> Address:
    """Raises BadDescription with what is wrong; never repeats what may be a secret. schemes: the known ones."""
    if not text.isprintable() or any("\ud800" <= c <= "\udfff" for c in text):
        raise BadDescription("An address is plain text, without control characters.")
    head, _, query = text.partition("?")
    options = _options(query)
    if head == "-":
        return Address("-", "", options=options)
    scheme, colon, rest = head.partition(":")
    if not colon or not scheme:
        raise BadDescription(
            "An address begins with its kind, as local:readings, kafka://host/topic or file:rows.jsonl."
        )
    if scheme in PLAIN:
        path = unquote(rest[2:] if rest.startswith("///") else rest)
        if not path or path.startswith("//"):
            raise BadDescription(f"{scheme}: is followed by a name or a path, as {scheme}:readings.")
        return Address(scheme, path, options=options)
    if not rest.startswith("//"):
        raise BadDescription(f"{scheme}: is followed by //host/topic.")
    tls = scheme.endswith("s") and scheme not in ENDS_IN_S and scheme[:-1] not in PLAIN
    scheme = scheme[:-1] if tls else scheme
    if schemes is not None and scheme not in schemes:
        raise BadDescription(
            f"There is no broker for {scheme}://.", f"Known are {', '.join(sorted(schemes))}."
        )
    place, _, path = rest[2:].partition("/")
    user, _, place = place.rpartition("@")
    if ":" in user:
        raise BadDescription(
            f"{scheme}://: a password can't stand in an address.",
            "Refer to it: ?password=env:NAME or file:PATH.",
        )
    hosts = tuple(_host(h, scheme) for h in place.split(",")) if place else (("localhost", 0),)
    return Address(scheme, unquote(path), hosts, unquote(user) if user else None, tls, options)


def _options(query: str) -> dict[str, str]:
    options = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in SECRETS and value.partition(":")[0] not in ("env", "file"):
            raise BadDescription(
                f"The option {name} is a secret and can't stand in an address.",
                f"Refer to it: {name}=env:NAME or {name}=file:PATH.",
            )
        options[name] = value
    return options


def _is_number(text: str) -> bool:
    """Of a length that may be one: Python refuses to read thousands of digits."""
    return text.isascii() and text.isdecimal() and len(text) < 20


def _host(text: str, scheme: str) -> tuple[str, int]:
    name, _, port = text.rpartition(":") if text.rfind(":") > text.rfind("]") else (text, "", "")
    if port and not (_is_number(port) and 0 < int(port) < 65536):
        raise BadDescription(f"{scheme}://: {port[:20]!r} is no port.")
    if not name:
        raise BadDescription(f"{scheme}://: a host is missing.")
    return name.strip("[]"), int(port) if port else 0
