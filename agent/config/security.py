"""Which keys of ``kafka.tls`` and ``kafka.sasl`` belong together."""

from collections.abc import Iterator, Mapping

from agent.config.reading import Given
from agent.config.sections import Sasl, Tls

OF_PASSWORD = ("username", "password_file")
OF_ENDPOINT = ("client_id", "client_secret_file")
OPTIONAL = ("token_ca_file", "scope")
SASL_KEYS = (*OF_PASSWORD, "token_file", "token_url", *OF_ENDPOINT, *OPTIONAL)

Conflicts = Iterator[tuple[str, str]]


def of_security(tls: Tls, sasl: Sasl, given: Mapping[str, Given]) -> Conflicts:
    """Yield (key path, detail), as ``checks.conflicts`` does."""
    yield from _of_tls(tls)
    yield from _of_sasl(sasl)
    readable = sasl.mechanism in {"PLAIN", "OAUTHBEARER"} and not tls.enabled
    if readable and not sasl.allow_plaintext:
        mine = "kafka.tls.enabled" if "kafka.tls.enabled" in given else "kafka.sasl.mechanism"
        found = "false" if mine == "kafka.tls.enabled" else repr(sasl.mechanism)
        bound = f"{sasl.mechanism} only with kafka.tls.enabled true"
        reason = "the secret could be read on the way; kafka.sasl.allow_plaintext true permits it"
        yield mine, f"found {found}; allowed: {bound}: {reason}"


def _of_tls(tls: Tls) -> Conflicts:
    wanted = {"enabled true": tls.enabled, "cert_file": tls.cert_file is not None}
    for name, needed in {
        "ca_file": "enabled true",
        "cert_file": "enabled true",
        "key_file": "cert_file",
        "key_password_file": "cert_file",
    }.items():
        value = getattr(tls, name)
        if value is not None and not wanted[needed]:
            yield (
                f"kafka.tls.{name}",
                f"found {str(value)!r}; allowed: only with kafka.tls.{needed}",
            )


def _of_sasl(sasl: Sasl) -> Conflicts:
    """Each way to authenticate has exactly its keys: one too many is a misunderstanding."""
    mechanism = f"kafka.sasl.mechanism {sasl.mechanism}"
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    if sasl.mechanism == "OAUTHBEARER":
        if (sasl.token_file is None) == (sasl.token_url is None):
            found = "nothing" if sasl.token_file is None else "both"
            bound = "either kafka.sasl.token_file or kafka.sasl.token_url"
            yield "kafka.sasl.token_url", f"found {found}; allowed: {bound} with {mechanism}"
            return
        if sasl.token_url is None:
            needed, mechanism = ("token_file",), "kafka.sasl.token_file"
        else:
            needed, optional = ("token_url", *OF_ENDPOINT), OPTIONAL
            mechanism = "kafka.sasl.token_url"
    elif sasl.mechanism != "none":
        needed = OF_PASSWORD
    for name in SASL_KEYS:
        value = getattr(sasl, name)
        if value is None and name in needed:
            yield f"kafka.sasl.{name}", f"found nothing; allowed: required with {mechanism}"
        if value is not None and name not in (*needed, *optional):
            yield f"kafka.sasl.{name}", f"found a value; allowed: null with {mechanism}"
