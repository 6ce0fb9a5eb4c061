"""Schema management that needs no operator. Of Gasket it imports `postgres` and `logs` alone. Read `runner` first.

plugin, controller, monitor    a start, /health/ready, /api/migrations
commands/                      `gasket database ...`
head                           what a start does: nothing, where nothing is pending
runner                         the one way in: every change of the schema passes through it
apply/                         the session on the lock, one step and its tries
gate/                          what is checked before anything is applied, and what would be
revisions/                     the files: declarations, digests, edits, rules
catalog/                       what the live database is made of, and with what it is compared
ledger/                        the `migration_*` tables
archive/                       what downgrades take away, and how it comes back
background/                    work after the start: backfills, index builds
scratch/                       revisions tried out in another database: plan, adopt, drift
sql/                           revisions as SQL text, and that text read
config, connecting, errors     the installation, its connections, every refusal
"""
