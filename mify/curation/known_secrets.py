"""Secrets by detect-secrets (extra `curation`), asked only about lines on which a cheap pattern hits.

Its plugins know the formats of twenty services, and its filters what only looks like a secret. Over whole files it
reads 17 a second; here a line reaches it only where a fixed part of a format stands on it.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

# What must stand on a line for a plugin to have a chance, found with `in`: the rest of the text is never matched.
HINTS = (
    "AKC", "ABIA", "ACCA", "AKIA", "ASIA", "A3T", "AccountKey=", "cloudant", "ghu_", "ghr_", "ghp_", "gho_", "ghs_",
    "glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "GR1348941", "glcbt-", "glimt-", "glptt-", "glagent-", "gloas-",
    "_authToken", "SG.", "xox", "hooks.slack.com", "sq0csp-", "k_live_", "T3BlbkFJ", "softlayer", "eyJ", "pypi-",
    "aws_secret", "AWS_SECRET", "secret_access_key", *(f"-us{digit}" for digit in "123456789"),
)  # fmt: skip
# Where the text names the service, or a scheme: formats that a fixed part does not tell.
_NAMED = {
    "://": re.compile(r"://[^\s:/@'\"<>{}$%]{1,64}:[^\s:/@'\"<>{}$%]{3,128}@[A-Za-z0-9]"),
    "iscord": re.compile(r"[MNO][\w-]{23,25}\.[\w-]{6}\."),
    "wilio": re.compile(r"\b(?:AC|SK)[a-z0-9]{32}"),
}
_PLUGINS = (
    ("artifactory", "ArtifactoryDetector"), ("aws", "AWSKeyDetector"), ("azure_storage_key", "AzureStorageKeyDetector"),
    ("basic_auth", "BasicAuthDetector"), ("cloudant", "CloudantDetector"), ("discord", "DiscordBotTokenDetector"),
    ("github_token", "GitHubTokenDetector"), ("gitlab_token", "GitLabTokenDetector"), ("jwt", "JwtTokenDetector"),
    ("mailchimp", "MailchimpDetector"), ("npm", "NpmDetector"), ("openai", "OpenAIDetector"),
    ("pypi_token", "PypiTokenDetector"), ("sendgrid", "SendGridDetector"), ("slack", "SlackDetector"),
    ("softlayer", "SoftlayerDetector"), ("square_oauth", "SquareOAuthDetector"), ("stripe", "StripeDetector"),
    ("twilio", "TwilioKeyDetector"),
)  # fmt: skip
# What documentation writes for a password in a URL.
_PLACEHOLDERS = frozenset(
    ["password", "passwd", "pass", "pwd", "secret", "token", "user", "username", "test", "example", "changeme", "port",
     "foo", "bar", "baz", "xxx", "key", "pw", "mypassword", "yourpassword", "your_password", "api_key", "apikey"]
)  # fmt: skip
MAX_LINE = 2000


def find_secrets(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) in characters of what detect-secrets calls a secret, on the lines with a hint."""
    for start, end in _lines(text):
        line = text[start:end]
        for plugin in _plugins():
            for begin, stop in _matches(plugin, line):
                if not looks_harmless(line[begin:stop]):
                    yield start + begin, start + stop


def _matches(plugin: Any, line: str) -> Iterator[tuple[int, int]]:
    """Where a plugin's patterns match. Its own `analyze_string` gives groups: of "ghp_…" the "ghp"."""
    in_url = type(plugin).__name__ == "BasicAuthDetector"
    valid = getattr(plugin, "is_formally_valid", lambda token: True)
    for pattern in plugin.denylist:
        for match in pattern.finditer(line):
            group = max(range(pattern.groups + 1), key=lambda number: (number > 0, len(match.group(number) or "")))
            if group and len(match.group(group) or "") < 8 and not in_url:
                group = 0
            if valid(match.group(group)):
                yield match.span(group)


def looks_harmless(secret: str) -> bool:
    """Whether a value is a placeholder, or detect-secrets' filters take it for a counter, UUID or template."""
    return secret.lower() in _PLACEHOLDERS or any(harmless(secret) for harmless in _filters())


def _lines(text: str) -> list[tuple[int, int]]:
    lines: set[tuple[int, int]] = set()

    def add(place: int) -> None:
        start = text.rfind("\n", 0, place) + 1
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        if end - start <= MAX_LINE:
            lines.add((start, end))

    for hint in HINTS:
        place = text.find(hint)
        while place >= 0:
            add(place)
            place = text.find(hint, text.find("\n", place) + 1 or len(text))
    for word, pattern in _NAMED.items():
        if word in text:
            for match in pattern.finditer(text):
                add(match.start())
    return sorted(lines)


@functools.lru_cache(maxsize=1)
def _plugins() -> tuple[Any, ...]:
    return tuple(
        getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)() for module, name in _PLUGINS
    )


@functools.lru_cache(maxsize=1)
def _filters() -> tuple[Callable[[str], bool], ...]:
    from detect_secrets.filters import heuristic

    return (
        heuristic.is_sequential_string,
        heuristic.is_potential_uuid,
        heuristic.is_templated_secret,
        heuristic.is_not_alphanumeric_string,
        heuristic.is_prefixed_with_dollar_sign,
    )
