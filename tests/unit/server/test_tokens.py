"""Tokens: what goes in comes out, and nothing else does."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost_server.errors import InvalidFieldError
from milepost_server.tokens import Token, decode_token, encode_token, hash_query

HASH = hash_query("namespace", "workflow", None, [1, 2])


def refusal(text: str, **options: object) -> str:
    with pytest.raises(InvalidFieldError) as refused:
        decode_token("page_token", text, kind="list", query_hash=HASH, **options)  # type: ignore[arg-type]
    assert refused.value.field == "page_token"
    return refused.value.reason


@given(st.integers(0, 2**63 - 1), st.text(max_size=64), st.none() | st.integers(0, 2**63 - 1), st.text(max_size=1_024))
def test_a_token_says_what_was_put_in(position: int, incarnation: str, bound: int | None, after: str) -> None:
    token = Token(kind="list", query_hash=HASH, position=(position,), incarnation=incarnation, bound=bound, after=after)
    text = encode_token(token)
    assert text.isascii()
    assert decode_token("page_token", text, kind="list", query_hash=HASH) == token


def test_a_token_holds_no_namespace_and_no_workflow() -> None:
    text = encode_token(Token(kind="list", query_hash=hash_query("tenant-a", "workflow-a"), position=(1,)))
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    assert b"tenant" not in raw
    assert b"workflow" not in raw


@pytest.mark.parametrize("text", ["x", "!!!!", "é", "AAAA" * 10, " ", "A" * 100_000, "\0"])
def test_what_was_never_a_token_is_invalid(text: str) -> None:
    assert refusal(text) == "PAGE_TOKEN_INVALID"


def test_any_damage_is_found() -> None:
    text = encode_token(Token(kind="list", query_hash=HASH, position=(7,)))
    for number, character in enumerate(text[:-1]):
        other = "A" if character != "A" else "B"
        assert refusal(text[:number] + other + text[number + 1 :]) == "PAGE_TOKEN_INVALID"
    assert refusal(text[:-2]) == "PAGE_TOKEN_INVALID"
    assert refusal(text + "AAAA") == "PAGE_TOKEN_INVALID"


def test_a_token_of_another_query_or_call_is_a_mismatch() -> None:
    other_query = Token(kind="list", query_hash=hash_query("other"), position=(1,))
    other_call = Token(kind="prune", query_hash=HASH, position=(1, 2, 3, 4))
    assert refusal(encode_token(other_query)) == "PAGE_TOKEN_MISMATCH"
    assert refusal(encode_token(other_call)) == "PAGE_TOKEN_MISMATCH"


def test_a_made_up_token_of_another_shape_is_invalid() -> None:
    assert refusal(encode_token(Token(kind="list", query_hash=HASH, position=(1, 2)))) == "PAGE_TOKEN_INVALID"
    assert refusal(encode_token(Token(kind="list", query_hash=HASH, position=(-1,)))) == "PAGE_TOKEN_INVALID"
    assert refusal(encode_token(Token(version=2, kind="list", query_hash=HASH, position=(1,)))) == "PAGE_TOKEN_INVALID"


def test_every_argument_counts_in_the_hash() -> None:
    hashes = {hash_query(*arguments) for arguments in [("a", "b"), ("b", "a"), ("ab", ""), ("a", None), ("a", ["b"])]}
    assert len(hashes) == 5
