"""How a command ends that a signal has stopped."""

from __future__ import annotations

import signal

import pytest

from gasket.migrator.errors import MigrationInterruptedError
from gasket.migrator.signals import exiting_on_signals


@pytest.mark.parametrize(
    ("stopped", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "Error: Stopped by SIGINT.\n"),
        *(
            (MigrationInterruptedError(start=False, complete=True, number=number), code, "Error: Stopped by SIGTERM or")
            for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143))
        ),
    ],
)
def test_the_exit_code_tells_the_signal(
    stopped: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, exiting_on_signals():
        raise stopped
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1
