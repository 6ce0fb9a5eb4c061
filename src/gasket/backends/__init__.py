"""OpenAI-compatible backends, and the profiles that say which of them a key may use, and how."""
