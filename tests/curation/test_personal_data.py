"""Secrets and personal data: found where they are, left alone where they are not, and code still parses."""

from __future__ import annotations

import ast
import random
import string
import time

import pytest

from mify.curation.personal_data import PersonalDataRules, apply_rules, find_personal_data

RULES = PersonalDataRules()


def token(prefix: str, length: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """A made-up token; written as code so that no scanner takes this file for a leak."""
    generator = random.Random(length)
    return prefix + "a1" + "".join(generator.choices(alphabet, k=length - 4)) + "b2"


UPPER = string.ascii_uppercase + string.digits
TOKENS = [
    "AKIA" + "Q7" + "".join(random.Random(1).choices(UPPER, k=14)),
    token("ghp" + "_", 36),
    token("github" + "_pat_", 40),
    token("glpat" + "-", 20),
    token("xoxb" + "-", 30),
    token("AIza", 35),
    token("sk_live" + "_", 24),
    token("sk" + "-", 48),
    token("hf" + "_", 34),
    ".".join(["eyJ" + "hbGciOiJIUzI1NiJ9", "eyJ" + "zdWIiOiIxMjM0In0", "dBjftJeZ4CVPmB92K27uhbUJU1p1r"]),
]


@pytest.mark.parametrize("secret", TOKENS)
def test_tokens_of_services_are_redacted(secret: str) -> None:
    text, counts, dropped = apply_rules(f"x = '{secret}'\n", "python", RULES)
    assert secret not in text
    assert text == "x = '<KEY>'\n"
    assert counts == {"key": 1}
    assert dropped is None


def test_assigned_secrets_are_found_by_their_name_and_entropy() -> None:
    value = token("", 32)
    for line in (
        f'API_KEY = "{value}"',
        f"password: '{value}'",
        f'"client_secret": "{value}"',
        f'auth_token="{value}"',
    ):
        assert apply_rules(line, "text", RULES)[0] == line.replace(value, "<KEY>"), line
    for line in (
        f'checksum = "{value}"',
        'password = "correct-horse-battery-staple"',
        'api_key = "aaaaaaaaaaaaaaaaaaaaaaaaa11"',
        'secret = "some_module.some_function_name"',
        'token = "short"',
    ):
        assert apply_rules(line, "text", RULES)[0] == line, line


def test_private_keys_go_whole() -> None:
    block = "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END " + "RSA PRIVATE KEY-----"
    assert apply_rules(f'K = """{block}"""\n', "python", RULES)[0] == 'K = """<KEY>"""\n'
    assert find_personal_data("-----BEGIN " + "RSA PRIVATE KEY----- and no end") == []
    assert find_personal_data(block.replace("PRIVATE", "PUBLIC")) == []


@pytest.mark.parametrize(
    "address", ["jane.doe@uni-bonn.de", "j_d+tag@sub.company-x.co", "A1@b.org", "x@mail.python.org"]
)
def test_addresses_are_redacted(address: str) -> None:
    text = f"# Author: Jane <{address}>, or {address}.\n"
    assert apply_rules(text, "python", RULES)[0] == "# Author: Jane <<EMAIL>>, or <EMAIL>.\n"


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com",
        "foo@bar.com",
        "git@github.com:x/y",
        "noreply@anthropic.org",
        "@property",
        "a @ b.T",
        "y = w@x.mean()",
        "c = a@b.dot(d)",
        "x@b.co(1)",
        "name@",
        "@@",
        "a@b",
        "me@localhost",
        "https://x@y",
        "u@[1.2.3.4]",
        "decorated@functools.cache",
        "",
    ],
)
def test_what_only_looks_like_an_address_stays(text: str) -> None:
    assert find_personal_data(text, ["email"]) == []


def test_public_addresses_of_machines_only_where_asked() -> None:
    text = "hosts 8.8.4.4 and 192.168.0.1, 127.0.0.1, 999.1.1.1, version 1.2.3.4.5\n"
    assert apply_rules(text, "text", RULES)[0] == text
    redacted, counts, _ = apply_rules(text, "text", PersonalDataRules(ip_address="redact"))
    assert redacted == text.replace("8.8.4.4", "<IP_ADDRESS>")
    assert counts == {"ip_address": 1}


def test_each_kind_can_be_kept_or_drop_the_document() -> None:
    text = "mail jane@uni-bonn.de\n"
    assert apply_rules(text, "text", PersonalDataRules(email="keep")) == (text, {}, None)
    unchanged, counts, dropped = apply_rules(text, "text", PersonalDataRules(email="drop"))
    assert (unchanged, counts) == (text, {})
    assert dropped is not None
    assert text[dropped.start : dropped.end] == "jane@uni-bonn.de"


def test_python_that_parsed_still_parses() -> None:
    code = "total = jane@matrix.de\nnote = 'jane@uni-bonn.de'  # jane@uni-bonn.de\n"
    ast.parse(code)
    text, counts, _ = apply_rules(code, "python", RULES)
    assert text == "total = jane@matrix.de\nnote = '<EMAIL>'  # <EMAIL>\n"
    assert counts == {"email": 2}
    ast.parse(text)


def test_lines_are_counted_as_the_tokenizer_counts_them() -> None:
    code = "a = '\x0c'\nb = '''\u2028\n'''\ntotal = jane@matrix.de\nnote = 'jane@uni-bonn.de'\n"
    assert apply_rules(code, "python", RULES)[0] == code.replace("'jane@uni-bonn.de'", "'<EMAIL>'")


def test_redaction_is_idempotent_and_order_of_places_is_kept() -> None:
    text = f"jane@uni-bonn.de {TOKENS[1]} joe@mit.edu\n" * 3
    once, counts, _ = apply_rules(text, "text", RULES)
    assert once == "<EMAIL> <KEY> <EMAIL>\n" * 3
    assert counts == {"email": 6, "key": 3}
    assert apply_rules(once, "text", RULES)[0] == once


def test_hostile_text_takes_linear_time() -> None:
    started = time.process_time()
    for text in (
        "@" * 300_000,
        "a" * 300_000 + "@",
        "a@" * 150_000,
        "'" + "a" * 300_000,
        "eyJ" * 100_000,
        "a.b@" + "c." * 90_000,
        "-----BEGIN PRIVATE KEY-----" * 3000,
        "sk-" * 90_000,
    ):
        find_personal_data(text)
    assert time.process_time() - started < 10
