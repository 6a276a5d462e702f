"""The mixture of domains: how often each is seen so that the trained bytes stand in the wanted ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mixture(available: Mapping[str, int], parts: Mapping[str, float]) -> dict[str, Any]:
    """Weights for the token stream, and what they mean for each domain.

    With total = sum of all available bytes: target = part × total, repeat_factor = target / available. A factor above
    1 says that the domain is repeated, below 1 that some of it is left out of an epoch of that size. No document is
    dropped here. The part of a domain of which nothing is available goes to the others, in their ratio.

    Args:
        available: bytes kept per domain.
        parts: wanted parts per domain; only their ratio counts.

    Returns:
        {"domains": {domain: {available_bytes, available_share, target_share, target_bytes, repeat_factor}},
        "statement": in words}; shares and factors rounded to 6 digits.
    """
    total = sum(available.get(domain, 0) for domain in parts)
    present = {domain: part for domain, part in parts.items() if part > 0 and available.get(domain, 0) > 0}
    whole = sum(present.values())
    domains: dict[str, Any] = {}
    notes: list[str] = []
    for domain, part in parts.items():
        have = available.get(domain, 0)
        share = present.get(domain, 0.0) / whole if whole else 0.0
        target = round(share * total)
        factor = round(target / have, 6) if have else 0.0
        domains[domain] = {
            "available_bytes": have,
            "available_share": round(have / total, 6) if total else 0.0,
            "target_share": round(share, 6),
            "target_bytes": target,
            "repeat_factor": factor,
        }
        if part > 0 and not have:
            notes.append(f"{domain} is absent: its part goes to the others")
        elif factor > 1.005:
            notes.append(f"{domain} is repeated {factor:.2f} times")
        elif have and factor < 0.995:
            notes.append(f"{factor:.0%} of {domain} is seen per epoch")
    wanted = ":".join(f"{part:g}" for part in parts.values())
    statement = f"to train {'/'.join(parts)} at {wanted}: " + ("; ".join(notes) or "all is seen once")
    return {"domains": domains, "statement": statement}
