"""A session in a process of its own: how it is started, what it runs, and what goes over its wire.

The pool's end of it is `pool/subprocess_*.py`; what stands above the process is `process/warden/`.
"""
