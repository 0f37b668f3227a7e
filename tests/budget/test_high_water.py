"""The mark beside a ledger: an older copy is noticed, and neighbours at work are no alarm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.budget.high_water import HighWater
from agentao_gov.errors import StoreError


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[HighWater]:
    """The mark of the ledger `a`, which had come to entry 10."""
    made = HighWater(tmp_path / "ledger.mark")
    made.admit("a", 10, made.read())
    yield made
    made.close()


def test_a_ledger_that_ends_before_its_mark_is_refused(mark: HighWater) -> None:
    """Spending would be forgotten."""
    with pytest.raises(StoreError, match="older copy"):
        mark.admit("a", 9, mark.read())


def test_another_ledger_is_refused(mark: HighWater) -> None:
    """However long it is."""
    with pytest.raises(StoreError, match="another ledger"):
        mark.admit("b", 99, mark.read())


def test_neighbours_that_write_while_one_opens_are_no_alarm(mark: HighWater) -> None:
    """The ledger is compared with the mark as it was before the look; and the later mark is not taken back."""
    before = mark.read()
    seen = 12
    mark.advance(20)

    mark.admit("a", seen, before)

    assert mark.last == 20
    with pytest.raises(StoreError, match="older copy"):
        mark.admit("a", seen, mark.read())


def test_after_a_reboot_only_what_was_on_the_disk_has_to_be_there(mark: HighWater) -> None:
    """A power cut may have taken the last moments."""
    mark.on_disk(7)
    rebooted = mark.read()._replace(boot=b"another boot")

    mark.admit("a", 8, rebooted)

    with pytest.raises(StoreError, match="older copy"):
        mark.admit("a", 6, rebooted)
