"""The HTTP service: the session pool behind an OpenAI-compatible and a native API."""
