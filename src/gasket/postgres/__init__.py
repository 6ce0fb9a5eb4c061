"""PostgreSQL's tools for every room: naming, quoting, connecting, describing errors, poolers, blockers, programs."""
