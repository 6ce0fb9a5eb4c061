"""`/metrics`: what Prometheus is told of this replica."""
