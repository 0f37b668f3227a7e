"""Runs agentao agents under limits, pools their sessions, proves the limits and load-tests the pool."""
