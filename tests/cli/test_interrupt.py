"""`packedbag.cli.interrupt`."""

import signal

import pytest

from packedbag.cli.interrupt import stop_wish


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_first_signal_is_a_wish_and_a_second_one_an_interruption(number, code):
    told = []
    with stop_wish(lambda: told.append(1)) as wish:
        assert wish.signal is None
        signal.raise_signal(number)
        assert (wish.signal, wish.exit_code, told) == (number, code, [1])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_the_handlers_before_come_back_even_after_an_error():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stop_wish(lambda: 1 / 0):
        signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
