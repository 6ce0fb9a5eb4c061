"""API keys: who may use the gateway, under which profile, for how long."""
