"""Durations, token amounts and sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentao_gov.config import format_bytes, format_duration, parse_bytes, parse_duration_s, parse_tokens


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1.5h", 5400),
        ("7d", 604800),
        ("250ms", 0.25),
        (30, 30),
        (2.5, 2.5),
        ("0", 0),
        ("12", 12),
    ],
)
def test_a_duration_is_read_in_every_unit(text: object, seconds: float) -> None:
    """Units from milliseconds to days, and plain numbers of seconds."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 weeks", "1h30m", "nan", -1, float("inf"), True, None, [1]])
def test_what_is_no_duration_is_refused(text: object) -> None:
    """Negative, endless and misspelt times are errors that show how to write one."""
    with pytest.raises(ValueError, match="such as 90s"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("20000", 20000), ("20_000", 20000), ("20k", 20000), ("1.5m", 1_500_000), (7, 7), ("1.5K", 1500)],
)
def test_a_token_amount_is_read_with_and_without_suffix(text: object, tokens: int) -> None:
    """The suffixes k and m are powers of ten."""
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["1.5", "0.0001k", "-1", "many", True, 1.5])
def test_what_is_no_whole_number_of_tokens_is_refused(text: object) -> None:
    """Half a token cannot be spent."""
    with pytest.raises(ValueError, match="token"):
        parse_tokens(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 * 1024**2), ("5GiB", 5 * 1024**3), ("100MB", 10**8), ("64k", 65536), ("7B", 7), (9, 9)],
)
def test_a_size_is_read_in_binary_and_decimal_units(text: object, size: int) -> None:
    """MiB counts by 1024, MB by 1000."""
    assert parse_bytes(text) == size


@given(st.floats(min_value=0, max_value=1e9))
def test_a_formatted_duration_reads_back_as_itself(seconds: float) -> None:
    """What `show` prints can be put back into a file."""
    assert parse_duration_s(format_duration(seconds)) == seconds


@given(st.integers(min_value=0, max_value=2**50))
def test_a_formatted_size_reads_back_as_itself(size: int) -> None:
    """No byte is lost in printing."""
    assert parse_bytes(format_bytes(size)) == size
