"""The ledger: what was applied, when, by which release. It lives in tables named `migration_*`."""
