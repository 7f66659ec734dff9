"""What signals do to a command, in this process; tests/faults has the real ones."""

import os
import signal
import threading

import pytest

from raylth.common import signals


def test_a_signal_after_the_last_look_is_not_lost():
    def work():
        with signals.deferred() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.by == signal.SIGTERM, "nothing is raised while somebody may look"

    with pytest.raises(KeyboardInterrupt):
        work()


def test_handlers_are_restored(monkeypatch):
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.deferred() as asked:
        assert signal.getsignal(signal.SIGINT) == asked.handle
        with signals.shielded():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
            assert signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, set())
        assert signal.getsignal(signal.SIGTERM) == asked.handle
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_rays_own_exit_at_sigterm_is_an_interrupt(monkeypatch):
    monkeypatch.setattr(signals, "_asked", signals.Asked())
    with pytest.raises(KeyboardInterrupt), signals.shielded():
        raise SystemExit(15)
    assert signals.was_asked().why == " (SIGTERM)"


def test_elsewhere_than_in_the_main_thread_nothing_is_touched():
    found = []

    def other():
        with signals.deferred() as asked, signals.shielded():
            found.append(asked.by)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [None]


def test_only_a_later_signal_ends_the_process_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    asked = signals.Asked()
    with pytest.raises(KeyboardInterrupt):
        asked.handle(signal.SIGINT)
    asked.handle(signal.SIGINT)
    assert not ended
    asked.at -= signals.SAME_SECONDS + 1
    asked.handle(signal.SIGINT)
    assert ended == [130]
