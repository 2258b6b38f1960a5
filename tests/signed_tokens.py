"""Signed tokens (JWS, RS256), and the keys (JWKS) by which a broker knows them."""

import base64
import json
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

ISSUER, AUDIENCE = "https://login.example", "kafka"
TRUSTED, STRANGER = ("one", "two"), "stranger"


def make(run: Path) -> None:
    """Write three keys, and what a broker may know: the first two."""
    known = []
    for name in (*TRUSTED, STRANGER):
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (run / f"jwt-{name}.pem").write_bytes(pem)
        public = key.public_key().public_numbers()
        numbers = {"n": _encoded(_big_endian(public.n)), "e": _encoded(_big_endian(public.e))}
        known.append({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": name, **numbers})
    (run / "jwks.json").write_text(json.dumps({"keys": known[:-1]}))


def keys(run: Path) -> str:
    """Return the URL of what a broker may know."""
    return (run / "jwks.json").as_uri()


def signed(
    run: Path,
    user: str,
    lifetime_s: float,
    *,
    key: str = TRUSTED[0],
    named: str | None = None,
    audience: str = AUDIENCE,
) -> str:
    """Return a token. ``named``: the key that it says it is signed with, where that is a lie."""
    now_s = int(time.time())  # noqa: TID251 - the broker compares it with the time of day
    header = {"alg": "RS256", "typ": "JWT", "kid": named or key}
    claims = {"iss": ISSUER, "aud": audience, "sub": user, "iat": now_s - 1}
    expires = {"exp": int(now_s + lifetime_s)}
    parts = (_encoded(json.dumps(part).encode()) for part in (header, claims | expires))
    text = ".".join(parts)
    private = load_pem_private_key((run / f"jwt-{key}.pem").read_bytes(), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    return f"{text}.{_encoded(private.sign(text.encode(), PKCS1v15(), SHA256()))}"


def _big_endian(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
