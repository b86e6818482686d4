import os
import signal
import threading

import pytest

from minitron_nas.execution.preemption import on_stop


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
