"""The ledger on Redis or Valkey: one Lua program decides, `store.py` asks it."""
