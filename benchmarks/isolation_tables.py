"""The tables of `isolation.md`, from what `isolation.py` measured."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import machine, table

__all__ = ["sections"]

#: Name in the table -> name among the measurements.
STARTS = {
    "in this process": "start in-process",
    "**from the stock of ready processes**": "start ready",
    "forked from the zygote": "start forked",
    "cold, also what a tenant's own Python takes": "start cold",
    "the zygote itself, once per service, in the background": "start of the zygote, once",
}
STOPS = {"forked": "forked", "from the stock": "ready", "cold": "cold"}


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Section name -> its text."""
    environment = results["environment"]
    return {
        "machine": f"{machine(environment)} Load {environment['load_after']:.1f} when it ended.",
        "starts": _starts(results),
        "memory": _memory(results),
        "turns": _turns(results),
        "stops": _stops(results),
        "neighbours": _neighbours(results["neighbours_ms"]),
    }


def _starts(results: dict[str, Any]) -> str:
    times = results["milliseconds"]
    rows = [[name, times[key]["p50"], times[key]["p95"], times[key]["n"]] for name, key in STARTS.items()]
    acp = results["acp_manager"]["start"]
    rows.append(["`ACPManager`", acp["p50"], acp["p95"], acp["n"]])
    return table(["start to first answer, ms", "p50", "p95", "of"], rows)


def _memory(results: dict[str, Any]) -> str:
    ours, theirs = results["pss_mib"], results["acp_manager"]["pss MiB"]
    counts = [key for key in ours if key.isdigit()]
    head = ["memory, PSS MiB", *(f"{count} sessions" for count in counts), "each beyond the first"]
    rows = [[name, *(found.get(count, "") for count in counts), f"**{found['each beyond the first']}**"]
            for name, found in (("subprocess", ours), ("`ACPManager`", theirs))]  # fmt: skip
    return table(head, rows)


def _turns(results: dict[str, Any]) -> str:
    found = results["turns"]
    acp = {key: {"turns/s": value} for key, value in results["acp_manager"].items() if key.startswith("turns/s")}
    rows = []
    for name in ("in-process", "subprocess"):
        four = found[f"{name}, 4 sessions"]
        rates = [found[f"{name}, {count} sessions"]["turns/s"] for count in (1, 2, 4)]
        rows.append([name, *rates, four["CPU ms a turn, service"], four["CPU ms a turn, session"]])
    rates = [acp.get(f"turns/s, {count} sessions", {}).get("turns/s", "") for count in (1, 2, 4)]
    rows.append(["`ACPManager`", *rates, "", ""])
    heads = ["turns/s", "1 session", "2", "4", "CPU ms a turn in the service", "in the session's process"]
    return table(heads, rows)


def _stops(results: dict[str, Any]) -> str:
    times = results["milliseconds"]
    rows = [[name, times[f"stop {key}, graceful"]["p50"], times[f"stop {key}, forced"]["p50"]]
            for name, key in STOPS.items()]  # fmt: skip
    rows.append(["`ACPManager`, each of `stop_all`", results["acp_manager"]["stop, each"], ""])
    return table(["stop, ms p50", "graceful", "forced"], rows)


def _neighbours(found: dict[str, Any]) -> str:
    rows = [[name, value["p50"], value["p95"], value["n"], f"**{value['p95 against quiet']}**"]
            for name, value in found.items()]  # fmt: skip
    return table(["neighbour's turn beside a session, ms", "p50", "p95", "turns", "p95 against quiet"], rows)
