"""Sessions of many tenants in one process: who gets a turn, who stays in memory, who goes on from disk.

    pool = AgentPool(deployment, {"in-process": hosts, "fresh": hosts}, archive)
    report = pool.submit(TurnOrder(...), on_event).result()
    pool.close()

`core.py` decides, without threads or files; `pool.py` acts on its decisions; `archive.py` keeps what must last;
`ladder.py` is the ordered way down.
"""
