"""A thread that works again and again: it ends when it is told to, and an error of its work is said."""

import logging
import threading
import time

import pytest

from pipeline.repeating import Repeating

NOW = 0.001
LIMIT_SECONDS = 10


def test_it_works_again_and_again_until_it_is_closed() -> None:
    done, often = [0], threading.Event()

    def work() -> None:
        done[0] += 1
        if done[0] == 3:
            often.set()

    repeating = Repeating(work, NOW, "counter")
    repeating.start()
    assert often.wait(LIMIT_SECONDS)
    repeating.close()
    before = done[0]
    time.sleep(20 * NOW)
    assert done[0] == before


def test_it_waits_before_the_first_time_and_is_closed_without_waiting_for_its_turn() -> None:
    done: list[str] = []
    repeating = Repeating(lambda: done.append("work"), 3600.0, "late")
    repeating.start()
    began = time.monotonic()
    repeating.close()
    assert not done and time.monotonic() - began < LIMIT_SECONDS


def test_its_work_can_stop_it() -> None:
    done: list[str] = []

    def work() -> None:
        done.append("work")
        repeating.stop()

    repeating = Repeating(work, NOW, "once")
    repeating.start()
    repeating._thread.join(LIMIT_SECONDS)
    assert done == ["work"] and not repeating._thread.is_alive()


def test_closing_one_that_never_began_does_nothing() -> None:
    Repeating(lambda: pytest.fail("it began"), NOW, "never").close()


def test_closing_does_not_wait_for_work_that_hangs() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(LIMIT_SECONDS)

    repeating = Repeating(work, NOW, "hanging")
    repeating.start()
    assert begun.wait(LIMIT_SECONDS)
    repeating.close(wait_seconds=NOW)
    assert repeating._thread.is_alive()
    go_on.set()
    repeating.close()
    assert not repeating._thread.is_alive()


def test_an_error_of_the_work_ends_it_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def work() -> None:
        done.append("work")
        raise OSError("the disk is gone")

    repeating = Repeating(work, NOW, "failing")
    with caplog.at_level(logging.ERROR):
        repeating.start()
        repeating._thread.join(LIMIT_SECONDS)
    assert done == ["work"] and not repeating._thread.is_alive()
    assert caplog.messages == ["the thread 'failing' ended: OSError: the disk is gone"] and "Traceback" in caplog.text
