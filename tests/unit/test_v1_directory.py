from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gasket.proxy.access import Access
from gasket.proxy.directory import KeyDirectory
from gasket.proxy.errors import BusyError, KeyRefusedError
from tests.access import a_backend, a_profile, an_access
from tests.clock import Clock

TTL = 30.0
KEYS = [b"gsk_%048x" % number for number in range(4)]
KEY, OTHER, *_ = KEYS


def digest_of(key: bytes) -> str:
    return sha256(key).hexdigest()


def access_of(
    key: bytes = KEY, *, version: int = 0, profile: int = 1, backend: int = 1, expires_at: float | None = None
) -> Access:
    """What a database would say of a key; `version` counts its changes."""
    whose = a_profile(a_backend(id=backend), id=profile, name=f"version {version}")
    return an_access(whose, key_id=KEYS.index(key), expires_at=expires_at)


Answer = Access | Exception


class Database:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, asyncio.Future[Access]]] = []

    async def find(self, digest: str) -> Access:
        answer: asyncio.Future[Access] = asyncio.get_running_loop().create_future()
        self.asked.append((digest, answer))
        return await answer

    async def answer(self, answer: Answer, which: int = -1) -> None:
        """To the request that came last, or to another."""
        _, waiting = self.asked[which]
        if isinstance(answer, Exception):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)
        await settle()


async def settle() -> None:
    """Let all that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1000.0)
    monkeypatch.setattr("gasket.proxy.directory.time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def directory(database: Database) -> KeyDirectory:
    return KeyDirectory(database.find, ttl=TTL)


async def put(directory: KeyDirectory, database: Database, answer: Access, key: bytes = KEY) -> None:
    """Have the key looked up, with this result."""
    asking = asyncio.create_task(directory.look_up(key))
    await settle()
    await database.answer(answer)
    assert await asking is answer


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (b"", "missing_api_key"),
        (b"gsk_", "malformed_api_key"),
        (b"sk-" + b"a" * 48, "malformed_api_key"),
        (b"gsk_" + b"a" * 47, "malformed_api_key"),
        (b"gsk_" + b"a" * 49, "malformed_api_key"),
        (b"gsk_" + b"A" * 48, "malformed_api_key"),
        (b"gsk_" + b"a" * 48 + b"\n", "malformed_api_key"),
        (b" gsk_" + b"a" * 48, "malformed_api_key"),
        (b"gsk_" + b"\xff" * 48, "malformed_api_key"),
    ],
)
def test_what_has_not_the_form_of_a_key_is_refused_without_asking(
    directory: KeyDirectory, key: bytes, code: str
) -> None:
    with pytest.raises(KeyRefusedError) as refused:
        directory.recall(key)
    assert (refused.value.status, refused.value.code) == (401, code)


class TestOneLookUp:
    async def test_many_that_ask_at_once_ask_once(self, directory: KeyDirectory, database: Database) -> None:
        asking = [asyncio.create_task(directory.look_up(KEY)) for _ in range(50)]
        other = asyncio.create_task(directory.look_up(OTHER))
        await settle()
        assert [digest for digest, _ in database.asked] == [digest_of(KEY), digest_of(OTHER)]
        await database.answer(access_of(OTHER))
        await database.answer(answer := access_of(), which=0)
        assert {id(access) for access in await asyncio.gather(*asking)} == {id(answer)}
        assert (await other).key_id == 1
        assert (directory.misses, directory.hits) == (2, 0)

    async def test_all_hear_of_a_failure_and_the_next_one_asks_again(
        self, directory: KeyDirectory, database: Database
    ) -> None:
        asking = [asyncio.create_task(directory.look_up(KEY)) for _ in range(3)]
        await settle()
        await database.answer(BusyError(code="database_unavailable"))
        for each in asking:
            with pytest.raises(BusyError):
                await each
        await put(directory, database, access_of())
        assert len(database.asked) == 2

    async def test_who_leaves_takes_the_answer_from_nobody(self, directory: KeyDirectory, database: Database) -> None:
        first, second = (asyncio.create_task(directory.look_up(KEY)) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        assert first.cancelled()
        await database.answer(access_of())
        assert await second is directory.recall(KEY)

    @pytest.mark.parametrize("answer", [access_of(), KeyRefusedError("no"), BusyError(), RuntimeError("a fault")])
    async def test_all_may_leave(
        self, directory: KeyDirectory, database: Database, answer: Answer, caplog: pytest.LogCaptureFixture
    ) -> None:
        gc.collect()  # what other tests have left is complained of now, and not below
        caplog.clear()
        before = asyncio.all_tasks()
        asking = asyncio.create_task(directory.look_up(KEY))
        await settle()
        asking.cancel()
        await settle()
        await database.answer(answer)
        known = directory.recall(KEY)
        assert known is (answer if isinstance(answer, Access) else None)
        gc.collect()  # an exception that nobody has asked for is complained of then
        assert not caplog.records
        assert asyncio.all_tasks() <= before


class TestTime:
    async def test_it_is_known_until_its_time_is_over(
        self, directory: KeyDirectory, database: Database, clock: Clock
    ) -> None:
        """The time begins when it was asked for: what came later may have been changed since."""
        asking = asyncio.create_task(directory.look_up(KEY))
        await settle()
        clock.now += 10
        await database.answer(access_of())
        assert await asking is directory.recall(KEY)
        clock.now += TTL - 10 - 0.1
        assert directory.recall(KEY) is not None
        assert directory.hits == 2
        clock.now += 0.1
        assert directory.recall(KEY) is None

    async def test_a_shorter_time_holds_from_then_on(
        self, directory: KeyDirectory, database: Database, clock: Clock
    ) -> None:
        directory.ttl = 2
        await put(directory, database, access_of())
        clock.now += 2
        assert directory.recall(KEY) is None

    async def test_expiry_is_looked_at_each_time(
        self, directory: KeyDirectory, database: Database, clock: Clock
    ) -> None:
        await put(directory, database, access_of(expires_at=clock.now + 5))
        clock.now += 4.9
        assert directory.recall(KEY) is not None
        clock.now += 0.1
        with pytest.raises(KeyRefusedError) as refused:
            directory.recall(KEY)
        assert refused.value.code == "expired_api_key"

    async def test_a_refusal_is_known_for_a_few_seconds(
        self, directory: KeyDirectory, database: Database, clock: Clock
    ) -> None:
        asking = asyncio.create_task(directory.look_up(KEY))
        await settle()
        await database.answer(KeyRefusedError("It is revoked.", code="revoked_api_key"))
        with pytest.raises(KeyRefusedError):
            await asking
        clock.now += 4.9
        for _ in range(3):
            with pytest.raises(KeyRefusedError, match="It is revoked") as refused:
                await directory.look_up(KEY)
            assert refused.value.code == "revoked_api_key"
        assert directory.recall(KEY) is None
        assert len(database.asked) == 1
        clock.now += 0.1
        await put(directory, database, access_of())

    async def test_nor_is_it_known_for_longer_than_a_key(
        self, directory: KeyDirectory, database: Database, clock: Clock
    ) -> None:
        directory.ttl = 2
        asking = asyncio.create_task(directory.look_up(KEY))
        await settle()
        await database.answer(KeyRefusedError())
        with pytest.raises(KeyRefusedError):
            await asking
        clock.now += 2
        await put(directory, database, access_of())


FORGETTING: list[Callable[[KeyDirectory], None]] = [
    lambda directory: directory.forget_key(digest_of(KEY)),
    lambda directory: directory.forget_profile(1),
    lambda directory: directory.forget_backend(1),
    lambda directory: directory.forget_all(),
]


class TestForgetting:
    async def test_only_what_is_concerned(self, directory: KeyDirectory, database: Database) -> None:
        keys = dict(zip(KEYS, [(1, 1), (1, 2), (2, 2), (3, 3)], strict=True))
        steps: list[tuple[Callable[[], None], list[int]]] = [
            (lambda: directory.forget_key(digest_of(KEYS[0])), [0]),
            (lambda: directory.forget_profile(1), [0, 1]),
            (lambda: directory.forget_backend(2), [1, 2]),
            (lambda: directory.forget_backend(9), []),
            (lambda: directory.forget_profile(9), []),
            (lambda: directory.forget_key("unknown"), []),
            (directory.forget_all, [0, 1, 2, 3]),
        ]
        for forget, gone in steps:
            for key, (profile, backend) in keys.items():
                if directory.recall(key) is None:
                    await put(directory, database, access_of(key, profile=profile, backend=backend), key)
            forget()
            assert [number for number, key in enumerate(KEYS) if directory.recall(key) is None] == gone

    @pytest.mark.parametrize("forget", FORGETTING)
    async def test_what_was_overtaken_by_a_change_is_not_kept(
        self, directory: KeyDirectory, database: Database, forget: Callable[[KeyDirectory], None]
    ) -> None:
        before = asyncio.create_task(directory.look_up(KEY))
        await settle()
        forget(directory)
        after = asyncio.create_task(directory.look_up(KEY))
        await settle()
        assert len(database.asked) == 2, "who asks after the change is not given what may be older"
        old, new = access_of(version=1), access_of(version=2)
        await database.answer(old, which=0)
        assert await before is old
        assert directory.recall(KEY) is None
        assert not after.done()
        third = asyncio.create_task(directory.look_up(KEY))
        await settle()
        assert len(database.asked) == 2, "those who ask after it ask together again"
        await database.answer(new, which=1)
        assert await after is await third is new
        assert directory.recall(KEY) is new

    async def test_nor_does_it_take_the_place_of_what_is_newer(
        self, directory: KeyDirectory, database: Database
    ) -> None:
        before = asyncio.create_task(directory.look_up(KEY))
        await settle()
        directory.forget_key(digest_of(KEY))
        await put(directory, database, new := access_of(version=2))
        await database.answer(access_of(version=1), which=0)
        await before
        assert directory.recall(KEY) is new
        third = asyncio.create_task(directory.look_up(KEY))
        await settle()
        assert len(database.asked) == 3
        third.cancel()

    async def test_a_refusal_that_was_overtaken_is_not_kept(self, directory: KeyDirectory, database: Database) -> None:
        before = asyncio.create_task(directory.look_up(KEY))
        await settle()
        directory.forget_key(digest_of(KEY))
        await database.answer(KeyRefusedError("It does not exist."))
        with pytest.raises(KeyRefusedError):
            await before
        await put(directory, database, access_of())

    @pytest.mark.parametrize("forget", [FORGETTING[0], FORGETTING[-1]])
    async def test_a_key_that_is_restored_is_looked_up_again(
        self, directory: KeyDirectory, database: Database, forget: Callable[[KeyDirectory], None]
    ) -> None:
        asking = asyncio.create_task(directory.look_up(KEY))
        await settle()
        await database.answer(KeyRefusedError())
        with pytest.raises(KeyRefusedError):
            await asking
        forget(directory)
        await put(directory, database, access_of())


async def test_it_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many keys the newest are known, of many that do not exist, too."""
    monkeypatch.setattr("gasket.proxy.directory._MOST_KEYS", 10)
    monkeypatch.setattr("gasket.proxy.directory._MOST_REFUSALS", 10)
    asked: list[str] = []

    async def find(digest: str) -> Access:
        asked.append(digest)
        if digest in refused:
            raise KeyRefusedError
        return access_of()

    keys = [b"gsk_%048x" % number for number in range(100)]
    refused = {digest_of(key) for key in keys[1::2]}
    directory = KeyDirectory(find, ttl=TTL)
    for key in keys:
        with suppress(KeyRefusedError):
            await directory.look_up(key)
    assert directory.size == 10
    assert [key for key in keys if directory.recall(key)] == keys[80::2]
    asked.clear()
    for key in keys[81::2]:
        with pytest.raises(KeyRefusedError):
            await directory.look_up(key)
    assert asked == []
    with pytest.raises(KeyRefusedError):
        await directory.look_up(keys[79])
    assert asked == [digest_of(keys[79])]


async def test_what_is_looked_up_again_is_as_new_as_any_and_costs_no_other_its_place(
    directory: KeyDirectory, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.proxy.directory._MOST_KEYS", 3)
    for key in (*KEYS[:3], KEYS[1], KEYS[0]):
        await put(directory, database, access_of(key), key)
    assert [directory.recall(key) is not None for key in KEYS] == [True, True, True, False]
    await put(directory, database, access_of(KEYS[3]), KEYS[3])
    assert [directory.recall(key) is not None for key in KEYS] == [True, True, False, True]


class Asking(NamedTuple):
    """Someone who asks; `newest` is the newest version that the directory had been told of."""

    key: bytes
    newest: int
    task: asyncio.Task[Access]


class AnyOrder(RuleBasedStateMachine):
    """Keys change, changes are told, requests come and leave, and the database reads and answers: in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock(1000.0)
        self.patch.setattr("gasket.proxy.directory.time", SimpleNamespace(monotonic=self.clock))
        self.database = Database()
        self.directory = KeyDirectory(self.database.find, ttl=TTL)
        self.versions = dict.fromkeys(KEYS, 0)
        self.told = dict.fromkeys(KEYS, 0)
        self.since: dict[tuple[bytes, int], float] = {(key, 0): 0.0 for key in KEYS}
        self.reads: dict[int, Answer] = {}
        self.asking: list[Asking] = []

    def teardown(self) -> None:
        self.loop.run_until_complete(self._end())
        self.loop.close()
        self.patch.undo()

    async def _end(self) -> None:
        for _, waiting in self.database.asked:
            waiting.cancel()
        await asyncio.gather(*(asking.task for asking in self.asking), return_exceptions=True)
        await settle()

    @rule(key=st.sampled_from(KEYS))
    def a_request_comes(self, key: bytes) -> None:
        known = self.directory.recall(key)
        if known is None:
            task = self.loop.create_task(self.directory.look_up(key))
            self.asking.append(Asking(key, self.told[key], task))
            self.loop.run_until_complete(settle())
        else:
            self._check(key, known, self.told[key])

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def a_client_leaves(self, data: st.DataObject) -> None:
        self.asking.pop(data.draw(st.integers(0, len(self.asking) - 1))).task.cancel()
        self.loop.run_until_complete(settle())

    @rule(key=st.sampled_from(KEYS))
    def a_key_changes(self, key: bytes) -> None:
        self.versions[key] += 1
        self.since[key, self.versions[key]] = self.clock.now

    @rule(key=st.sampled_from(KEYS), how=st.sampled_from(["key", "profile", "all"]))
    def the_change_is_told(self, key: bytes, how: str) -> None:
        {
            "key": lambda: self.directory.forget_key(digest_of(key)),
            "profile": lambda: self.directory.forget_profile(1),
            "all": self.directory.forget_all,
        }[how]()
        for each in [key] if how == "key" else KEYS:
            self.told[each] = self.versions[each]

    @precondition(lambda self: len(self.reads) < len(self.database.asked))
    @rule(data=st.data())
    def the_database_reads(self, data: st.DataObject) -> None:
        unread = [number for number in range(len(self.database.asked)) if number not in self.reads]
        number = data.draw(st.sampled_from(unread))
        [key] = [key for key in KEYS if digest_of(key) == self.database.asked[number][0]]
        self.reads[number] = access_of(key, version=self.versions[key])

    @precondition(lambda self: any(not self.database.asked[number][1].done() for number in self.reads))
    @rule(data=st.data())
    def the_database_answers(self, data: st.DataObject) -> None:
        open_ones = [number for number in self.reads if not self.database.asked[number][1].done()]
        number = data.draw(st.sampled_from(open_ones))
        self.loop.run_until_complete(self.database.answer(self.reads[number], which=number))
        for asking in [asking for asking in self.asking if asking.task.done()]:
            self.asking.remove(asking)
            self._check(asking.key, asking.task.result(), asking.newest)

    @rule(seconds=st.sampled_from([1, 10, 29, 31]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def nobody_waits_for_what_nobody_has_asked(self) -> None:
        waiting = {digest for digest, answer in self.database.asked if not answer.done()}
        assert {digest_of(asking.key) for asking in self.asking} <= waiting

    def _check(self, key: bytes, access: Access, newest: int) -> None:
        version = int(access.profile.name.removeprefix("version "))
        assert access.key_id == KEYS.index(key)
        assert version >= newest, "older than what the directory had been told when it was asked"


class Untold(AnyOrder):
    """Nobody tells of changes: then a key lives on for its time, counted from when it was looked up, and no longer."""

    def the_change_is_told(self) -> None:
        """Never."""

    @rule(key=st.sampled_from(KEYS))
    def a_key_is_asked_for_from_memory(self, key: bytes) -> None:
        known = self.directory.recall(key)
        if known is not None:
            next_version = int(known.profile.name.removeprefix("version ")) + 1
            replaced = self.since.get((key, next_version))
            assert replaced is None or self.clock.now - replaced < TTL


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestUntold = Untold.TestCase
TestUntold.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
