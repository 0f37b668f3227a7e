"""A session in a process of its own: how it is started, what runs in it, and what goes over its wire.

The owner's end is `factory` (opens sessions), `host` (drives one), `spawn` (starts processes), `owner_ledger` and
`peer`; the process's end is `zygote` (forks it), `child` (runs in it) and `child_ledger`. `wire` is what both say.
"""
