"""Seeds by role: every random stream of the study has its own name, so no stream depends on how long another one ran."""

import hashlib

__all__ = ["derive_seed"]


def derive_seed(base: int, *role: str | int) -> int:
    """Derive the seed of one random stream from a base seed and the stream's role.

    `derive_seed(seed_a, "init")` and `derive_seed(seed_a, "data", 3)` are independent streams. The result is the
    first 63 bits of a SHA-256, the same on every machine and Python version (never `hash()`, which is salted).

    Returns an integer in [0, 2**63). Raises TypeError for a role that is neither text nor an integer.
    """
    for part in role:
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise TypeError(f"a seed's role is made of text and integers, not {part!r}")
    text = "\x1f".join([str(int(base)), *(f"{type(part).__name__}:{part}" for part in role)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
