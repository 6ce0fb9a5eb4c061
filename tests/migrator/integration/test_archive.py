"""What a downgrade takes away is in the archive before it goes: each kind of loss, and what is none."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
import pytest

from gasket.migrator.archive.inventory import LossKind
from tests.migrator.archive_project import ArchiveProject, kept, manifest


async def lost(project: ArchiveProject, observer: asyncpg.Connection, *, rows: str = "SELECT") -> list[tuple[str, str]]:
    """Up, insert the rows, down: (kind, name) of what was written down."""
    await project.up()
    await observer.execute(rows)
    await project.down()
    if await observer.fetchval("SELECT to_regclass('gasket_archive.manifest')") is None:
        return []
    return [(row["kind"], row["object_name"]) for row in await manifest(observer)]


async def test_a_dropped_table_is_kept_with_its_rows(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY, v text)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1, 'one'), (2, NULL)")
    report = await project.down()
    [entry] = await manifest(observer)
    assert (entry["kind"], entry["schema_name"], entry["object_name"]) == ("table", "public", "t")
    assert (entry["revision"], entry["digest"], entry["release"]) == ("r1", "digest", "1.0")
    assert (entry["row_count"], entry["problem"], entry["restored_at"]) == (2, None, None)
    assert entry["role"] == await observer.fetchval("SELECT current_user")
    assert entry["stored_in"] == f"a{entry['id']}"
    assert await kept(observer, "t") == [(1, "one"), (2, None)]
    assert str(report) == f"archive {entry['archive']} keeps 2 rows of public.t"
    assert await observer.fetchval("SELECT to_regclass('t')") is None


async def test_of_a_dropped_column_key_and_value_are_kept(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (big text, id int PRIMARY KEY)", "DROP TABLE t")
    project.step("ALTER TABLE t ADD v jsonb, ADD w int", "ALTER TABLE t DROP v, DROP w")
    await project.up()
    await observer.execute("""INSERT INTO t VALUES ('x', 1, '{"a": 1}', 7), ('y', 2, NULL, NULL)""")
    await project.down()
    assert await kept(observer, "t") == [(1, '{"a": 1}', 7), (2, None, None)]
    [entry] = await manifest(observer)
    columns = json.loads(entry["columns"])
    assert [(column["name"], column["key"]) for column in columns] == [("id", True), ("v", False), ("w", False)]


async def test_renames_and_moves_are_no_loss(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step(
        "CREATE SCHEMA other;\nCREATE TABLE t (id int PRIMARY KEY, v text)",
        "ALTER TABLE t RENAME TO old;\nALTER TABLE old RENAME v TO w;\nALTER TABLE old SET SCHEMA other",
    )
    assert await lost(project, observer, rows="INSERT INTO t VALUES (1, 'one')") == []
    assert await observer.fetchval("SELECT w FROM other.old") == "one"


async def test_a_column_made_anew_or_of_another_type_is_lost(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text, c varchar(9), d int)",
        "ALTER TABLE t DROP a;\nALTER TABLE t ADD a text;\nALTER TABLE t ALTER b TYPE int USING length(b);\n"
        "ALTER TABLE t ALTER c TYPE varchar(2) USING left(c, 2);\nALTER TABLE t ALTER d SET DEFAULT 4",
    )
    assert await lost(project, observer, rows="INSERT INTO t VALUES (1, 'a', 'bb', 'ccc', 4)") == [("columns", "t")]
    assert await kept(observer, "t") == [(1, "a", "bb", "ccc")]


async def test_what_cascades_is_lost_too(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step(
        "CREATE TYPE mood AS ENUM ('sad', 'glad');\nCREATE SCHEMA other;\nCREATE TABLE other.u (id int);\n"
        "CREATE TABLE t (id int PRIMARY KEY, m mood);\nCREATE VIEW v AS SELECT * FROM t;\n"
        "CREATE MATERIALIZED VIEW mv AS SELECT * FROM t",
        "DROP TYPE mood CASCADE;\nDROP SCHEMA other CASCADE",
    )
    rows = "INSERT INTO t VALUES (1, 'glad'); INSERT INTO other.u VALUES (5)"
    found = await lost(project, observer, rows=rows)
    assert sorted(found, key=repr) == [("columns", "t"), ("note", None), ("table", "u")]
    [note] = [entry["problem"] for entry in await manifest(observer) if entry["kind"] == "note"]
    assert "CASCADE also drops view v, materialized view mv" in note
    assert await kept(observer, "t") == [(1, "glad")]
    assert await kept(observer, "u") == [(5,)]


async def test_types_and_collations_of_the_user_do_not_stand_in_the_way(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TYPE mood AS ENUM ('sad', 'glad');\nCREATE DOMAIN day AS timestamptz;\nCREATE DOMAIN ratio AS float8;\n"
        "CREATE TYPE pair AS (a int, b mood);\nCREATE COLLATION mine (locale = 'C');\n"
        "CREATE TABLE t (id int PRIMARY KEY, m mood, ms mood[], d day, r ratio, p pair, c text COLLATE mine)",
        "DROP TABLE t;\nDROP TYPE pair;\nDROP TYPE mood;\nDROP DOMAIN day;\nDROP DOMAIN ratio;\nDROP COLLATION mine",
    )
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    for setting in ("extra_float_digits = 0", "datestyle = 'SQL, DMY'", "timezone = 'Asia/Kolkata'"):
        await observer.execute(f"ALTER DATABASE {database} SET {setting}")
    rows = (
        "INSERT INTO t VALUES (1, 'glad', '{sad,glad}', '2026-02-03 04:05:06+00', 0.1::float8 + 0.2::float8, "
        "(3, 'sad'), 'x')"
    )
    assert ("table", "t") in await lost(project, observer, rows=rows)
    assert await kept(observer, "t") == [
        (1, "glad", "{sad,glad}", "2026-02-03 09:35:06+05:30", "0.30000000000000004", "(3,sad)", "x")
    ]


async def test_generated_columns_are_left_out(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step(
        "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);\n"
        "CREATE TABLE u (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
        "DROP TABLE t;\nALTER TABLE u DROP twice",
    )
    rows = "INSERT INTO t VALUES (1, 4); INSERT INTO u VALUES (1)"
    assert await lost(project, observer, rows=rows) == [("table", "t")]
    assert await kept(observer, "t") == [(1, 4)]


async def test_without_a_key_that_stays_rows_are_kept_whole(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TABLE keyless (a int NOT NULL, b int, c int UNIQUE);\nCREATE UNIQUE INDEX ON keyless (a) WHERE a > 0;\n"
        "CREATE UNIQUE INDEX ON keyless (abs(a));\n"
        "CREATE TABLE doomed (a int, b int PRIMARY KEY);\n"
        "CREATE TABLE second (a int PRIMARY KEY, b int NOT NULL UNIQUE, c int);\n"
        "CREATE TABLE late (a int PRIMARY KEY DEFERRABLE, b int)",
        "ALTER TABLE keyless DROP b;\nALTER TABLE doomed DROP b;\nALTER TABLE second DROP a;\nALTER TABLE late DROP b",
    )
    rows = "".join(f"INSERT INTO {table} VALUES (1, 2);" for table in ("keyless", "doomed", "late", "second"))
    await lost(project, observer, rows=rows + "INSERT INTO second VALUES (3, 4, 5)")
    entries = {row["object_name"]: row for row in await manifest(observer)}
    for table in ("keyless", "doomed", "late"):
        assert f"public.{table} has no key that stays" in entries[table]["problem"]
    assert await kept(observer, "keyless") == [(1, 2, None)]
    assert entries["second"]["problem"] is None
    assert await kept(observer, "second") == [(1, 2), (3, 4)]


async def test_partitions_go_with_their_parent_and_inherited_rows_with_their_own_table(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TABLE p (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);\n"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);\n"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);\n"
        "CREATE TABLE p21 PARTITION OF p2 DEFAULT;\n"
        "CREATE TABLE base (id int PRIMARY KEY, v text);\nCREATE TABLE child (PRIMARY KEY (id)) INHERITS (base)",
        "ALTER TABLE p DROP v;\nALTER TABLE base DROP v",
    )
    rows = (
        "INSERT INTO p VALUES (1, 'a'), (12, 'b'); INSERT INTO base VALUES (1, 'x'); INSERT INTO child VALUES (2, 'y')"
    )
    assert sorted(await lost(project, observer, rows=rows)) == [
        ("columns", "base"),
        ("columns", "child"),
        ("columns", "p"),
    ]
    assert await kept(observer, "p") == [(1, "a"), (12, "b")]
    assert await kept(observer, "base") == [(1, "x")]
    assert await kept(observer, "child") == [(2, "y")]


async def test_a_dropped_partitioned_table_is_kept_whole_but_for_a_partition_that_stays(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    for table, downgrade in (("p", "DROP TABLE p"), ("q", "ALTER TABLE q DETACH PARTITION q1;\nDROP TABLE q")):
        project.step(
            f"CREATE TABLE {table} (id int PRIMARY KEY) PARTITION BY RANGE (id);\n"
            f"CREATE TABLE {table}1 PARTITION OF {table} FOR VALUES FROM (0) TO (10);\n"
            f"CREATE TABLE {table}2 PARTITION OF {table} FOR VALUES FROM (10) TO (20)",
            downgrade,
        )
    await project.up()
    await observer.execute("INSERT INTO p VALUES (1), (11); INSERT INTO q VALUES (1), (11)")
    await project.down("base")
    assert [(row["object_name"], row["row_count"]) for row in await manifest(observer)] == [("q2", 1), ("p", 2)]
    assert await observer.fetchval("SELECT count(*) FROM q1") == 1


async def test_the_positions_of_sequences_are_written_down(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TABLE t (id serial PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY);\nCREATE SEQUENCE s;\n"
        "CREATE TABLE kept (id serial)",
        "DROP TABLE t;\nDROP SEQUENCE s;\nTRUNCATE kept RESTART IDENTITY",
    )
    await project.up()
    await observer.execute("INSERT INTO t VALUES (DEFAULT), (DEFAULT); INSERT INTO kept VALUES (DEFAULT)")
    await project.down()
    positions = {
        row["object_name"]: (json.loads(row["position"]), json.loads(row["owner"] or "null"))
        for row in await manifest(observer)
        if row["kind"] == "sequence"
    }
    assert positions == {
        "t_id_seq": ([2, True], ["public", "t", "id"]),
        "t_n_seq": ([2, True], ["public", "t", "n"]),
        "s": ([1, False], None),
        "kept_id_seq": ([1, True], ["public", "kept", "id"]),
    }


async def test_rows_that_a_downgrade_deletes_or_updates_are_named_and_truncated_ones_kept(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TABLE gone (id int PRIMARY KEY);\nCREATE TABLE child (id int REFERENCES gone ON DELETE CASCADE);\n"
        "CREATE TABLE changed (id int PRIMARY KEY, v int);\nCREATE TABLE emptied (id int);\n"
        "CREATE TABLE replaced (id int);\nCREATE TABLE rewritten (id int PRIMARY KEY, v int);\n"
        "CREATE TABLE untouched (id int)",
        "DELETE FROM gone WHERE id > 1;\nUPDATE changed SET v = 0;\nTRUNCATE emptied;\nTRUNCATE replaced;\n"
        "INSERT INTO replaced VALUES (9);\nALTER TABLE rewritten ALTER v TYPE bigint;\n"
        "INSERT INTO untouched VALUES (2)",
    )
    await project.up()
    await observer.execute(
        "INSERT INTO gone VALUES (1), (2), (3); INSERT INTO child VALUES (2); "
        "INSERT INTO changed VALUES (1, 1), (2, 2);"
        "INSERT INTO emptied VALUES (1), (2); INSERT INTO replaced VALUES (1); INSERT INTO rewritten VALUES (1, 1)"
    )
    report = await project.down()
    assert set(report.not_archived) == {
        "downgrade() deletes 2 rows of public.gone: not archived",
        "downgrade() deletes 1 row of public.child: not archived",
        "downgrade() updates 2 rows of public.changed: not archived",
    }
    entries = {(row["kind"], row["object_name"]): row for row in await manifest(observer)}
    assert {key for key in entries if key[0] == "note"} == {("note", "gone"), ("note", "child"), ("note", "changed")}
    assert {key for key in entries if key[0] == "rows"} == {("rows", "emptied"), ("rows", "replaced")}
    assert entries["columns", "rewritten"]["row_count"] == 1
    assert await kept(observer, "emptied") == [(1,), (2,)]
    assert entries["rows", "emptied"]["problem"] is None
    assert "no key that tells" in entries["rows", "replaced"]["problem"]


async def test_an_attribute_of_a_composite_type_is_named(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TYPE pair AS (a int, b int)", "ALTER TYPE pair DROP ATTRIBUTE b")
    assert await lost(project, observer) == [("note", "pair")]
    [entry] = await manifest(observer)
    assert entry["problem"] == "attribute b of type public.pair goes: its values are not archived"


async def test_an_empty_table_leaves_an_entry_and_no_table(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    report = await project.down()
    assert not any(kept.rows for kept in report.kept)
    assert [(row["row_count"], row["stored_in"]) for row in await manifest(observer)] == [(0, None)]


async def test_every_step_has_an_archive_of_its_own(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TABLE a (id int);\nCREATE TABLE b (id int)", "DROP TABLE a;\nDROP TABLE b")
    project.step("CREATE TABLE c (id int)", "DROP TABLE c")
    await project.up()
    await observer.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); INSERT INTO c VALUES (1)")
    await project.down("base")
    rows = await manifest(observer)
    assert [(row["revision"], row["object_name"]) for row in rows] == [("r2", "c"), ("r1", "a"), ("r1", "b")]
    first, second, third = (row["archive"] for row in rows)
    assert first != second == third


@pytest.mark.parametrize("schema", ["second", 'Se"co nd', "s" * 60])
async def test_any_names_in_any_schema(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, schema: str
) -> None:
    project = ArchiveProject(tmp_path, database_url, schema)
    project.step('CREATE TABLE "Ta""b ;le" ("Id %%" int PRIMARY KEY)', 'DROP TABLE "Ta""b ;le"')
    project.step(
        'ALTER TABLE "Ta""b ;le" ADD "se""lect" text;\nCREATE TABLE plain (v int)',
        'ALTER TABLE "Ta""b ;le" DROP "se""lect";\nDROP TABLE plain',
    )
    await project.up()
    quoted = '"' + schema.replace('"', '""') + '"'
    await observer.execute(
        f"""INSERT INTO {quoted}."Ta""b ;le" VALUES (1, 'one'); INSERT INTO {quoted}.plain VALUES (3)"""
    )
    report = await project.down()
    assert {(k.name, k.kind, k.rows) for k in report.kept} == {
        (f'{schema}.Ta"b ;le (se"lect)', LossKind.COLUMNS, 1),
        (f"{schema}.plain", LossKind.TABLE, 1),
    }
    [archive] = [
        row[0] for row in await observer.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'gasket_archive%'")
    ]
    if len(schema) < 20:
        assert archive == f"gasket_archive_{schema}"
    await project.up()
    assert [tuple(row) for row in await observer.fetch(f'SELECT * FROM {quoted}."Ta""b ;le"')] == [(1, "one")]
    assert [tuple(row) for row in await observer.fetch(f"SELECT * FROM {quoted}.plain")] == [(3,)]


async def test_discarding_keeps_nothing_and_needs_no_archive(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    report = await project.down(discard=True)
    assert report.discarded
    assert await observer.fetchval("SELECT to_regnamespace('gasket_archive')") is None
