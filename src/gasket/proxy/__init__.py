"""`/v1`: OpenAI clients in, OpenAI-compatible backends out. It has no tables of its own."""
