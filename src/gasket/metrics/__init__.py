"""`/metrics`: the metrics of this replica, for Prometheus."""
