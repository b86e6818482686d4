import ctypes
import os
import signal
import threading
from pathlib import Path

import pytest

from minitron_nas.errors import PreemptedError
from minitron_nas.execution.preemption import on_stop, put_off


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_calls_the_function_instead_of_ending_the_process():
    came = []
    with on_stop(lambda _: came.append(1)):
        terminate()
        terminate()
    assert came == [1, 1]


def test_what_the_function_raises_the_block_raises():
    def stop(signum):
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"), on_stop(stop):
        terminate()


def test_whoever_listened_before_listens_again():
    before, outer, inner = signal.getsignal(signal.SIGTERM), [], []
    with on_stop(lambda _: outer.append(1)):
        with on_stop(lambda _: inner.append(1)):
            terminate()
        terminate()
    assert (outer, inner) == ([1], [1])
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_goes_without():
    before, handlers = signal.getsignal(signal.SIGTERM), []

    def work():
        with on_stop(lambda _: None):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def caught():
    """The signals that the system hands to this process, as bits."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt"))
    return int(line.split()[1], 16)


def test_a_signal_that_is_put_off_ends_the_work_after_the_block():
    done = []
    with pytest.raises(PreemptedError, match="^stopped by SIGTERM; "), put_off():
        terminate()
        done.append(1)
    assert done == [1]


def test_a_signal_that_is_put_off_says_more_than_a_fault_that_came_of_it():
    with pytest.raises(PreemptedError, match="^stopped by SIGTERM; "), put_off():
        terminate()
        raise OSError("its children heard the signal too")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_block_that_takes_handlers_away_from_the_system_too_leaves_them_as_they_were(signum):
    came, began_with = [], signal.signal(signum, signal.SIG_DFL)  # a shell may start us with SIGINT ignored
    try:
        with on_stop(came.append, [signum]):
            before = caught()
            with put_off():
                ctypes.CDLL(None).signal(signum, 0)  # SIG_DFL, of which Python learns nothing
                assert caught() != before
            assert caught() == before
            signal.raise_signal(signum)
    finally:
        signal.signal(signum, began_with)
    assert came == [signum]
