"""A private service beside a simulator, its client and its guard: for checklist, load test, tests and benchmarks."""
