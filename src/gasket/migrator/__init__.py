"""Schema management that needs no operator. Imports nothing of Gasket outside itself; read `runner` first.

plugin  controller  status              a start, /health/ready, /api/migrations
cli  commands  preview  report          `litestar database ...`
runner  session  steps  attempts        the one door: the lock, Alembic on it, one step and its tries
lock  connection  grants  signals       what these stand on
revisions  digest  edits  collisions    the files, and what is there without them
ledger  plan  graft  leftovers          what was applied, what would be, what to take back, what to clear away
catalog  errors                         a schema as a dictionary; every refusal
rules/                                  what every revision keeps
sql/                                    revisions as SQL text, and that text read
scratch/                                revisions tried out: plan and adopt
archive/                                what downgrades take away, and how it comes back
"""
