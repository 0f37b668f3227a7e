"""What an entry of the journal posts to the tables of a ledger file: triggers of the connection that appends it."""

from __future__ import annotations

import sqlite3

__all__ = ["let_entries_post"]


def _post(kinds: str, statement: str) -> str:
    """What an entry of those kinds does as soon as it is in the journal; `{n}` is its field of that number."""
    name = "_".join(kinds.split())
    wanted = ", ".join(f"'{kind}'" for kind in kinds.split())
    fields = {str(number): f"json_extract(NEW.body, '$[{number}]')" for number in range(12)}
    for number, field in fields.items():
        statement = statement.replace(f"{{{number}}}", field)
    when = f"json_extract(NEW.body, '$[1]') IN ({wanted})"
    return f"CREATE TEMP TRIGGER post_{name} AFTER INSERT ON journal WHEN {when} BEGIN {statement}; END"


# Fields of an entry:
# 2 id, 3 owner, 4 references, 5 used, 6 reserved, 7 estimated, 8 granted, 9 cost, 10 unpriced, 11 note.
_TRIGGERS = (
    _post(
        "reserve extend settle charge release correct grant",
        "UPDATE balances SET used = used + {5}, reserved = reserved + {6}, estimated = estimated + {7},"
        " granted = granted + {8}, cost = cost + {9}, unpriced = unpriced + {10}"
        " WHERE id IN (SELECT CAST(value AS INTEGER) FROM json_each(NEW.body, '$[4]'))",
    ),
    _post(
        "dispatch extend settle charge release correct",
        "UPDATE reservations SET used = used + {5}, estimated = estimated + {7}, cost = cost + {9},"
        " unpriced = unpriced + {10}, held_output = held_output + iif({1} = 'extend', {6}, 0),"
        " state = CASE {1} WHEN 'extend' THEN state WHEN 'dispatch' THEN 'dispatched' WHEN 'release' THEN 'released'"
        " WHEN 'charge' THEN 'charged_estimate' ELSE 'settled' END WHERE id = {2}",
    ),
    _post(
        "reserve",
        # The note is `prompt output price price`, or `prompt output unpriced`.
        "INSERT INTO reservations"
        " (id, owner, balances, state, held_prompt, held_output, price_prompt, price_completion)"
        " SELECT {2}, {3}, (SELECT group_concat(value) FROM json_each(NEW.body, '$[4]')), 'reserved',"
        " json_extract(note, '$[0]'), json_extract(note, '$[1]'),"
        " json_extract(note, '$[2]'), json_extract(note, '$[3]')"
        " FROM (SELECT '[' || replace(replace({11}, 'unpriced', 'null null'), ' ', ',') || ']' AS note)",
    ),
    _post("limit", "UPDATE balances SET limit_tokens = CAST(nullif({11}, 'None') AS INTEGER) WHERE id = {2}"),
    _post("warn", "UPDATE balances SET warned = CAST({11} AS INTEGER) WHERE id = {2}"),
)


def let_entries_post(connection: sqlite3.Connection) -> None:
    """From now on an entry that this connection appends posts itself to balances and reservations.

    So the tables cannot say anything else than the journal, and a step is one statement. The triggers are the
    connection's own, not the file's: they are part of the program that writes.
    """
    for trigger in _TRIGGERS:
        connection.execute(trigger)
