"""Laws of going by shares: not for one lost answer, and not back before all can have said what they admitted."""

from penstock.policy.outage import ALONE_AFTER_US, RETURN_US, Outage

T = 1_000_000


def lost() -> Outage:
    """Return one that has had no answer for long enough."""
    outage = Outage()
    outage.note_silence(T)
    outage.note_silence(T + ALONE_AFTER_US)
    return outage


def test_one_lost_answer_is_no_outage() -> None:
    """Only silence for the whole time is; an answer between begins it anew."""
    outage = Outage()
    outage.note_silence(T)
    assert not outage.is_alone
    outage.note_silence(T + ALONE_AFTER_US - 1)
    assert not outage.is_alone
    outage.note_answer(T + ALONE_AFTER_US)
    outage.note_silence(T + ALONE_AFTER_US + 1)
    assert not outage.is_alone
    outage.note_silence(T + 2 * ALONE_AFTER_US + 1)
    assert outage.is_alone


def test_the_way_back_takes_its_time() -> None:
    """The first answer is not the end of it: answers for the whole time are."""
    outage = lost()
    outage.note_answer(5 * T)
    outage.note_answer(5 * T + RETURN_US - 1)
    assert outage.is_alone
    outage.note_answer(5 * T + RETURN_US)
    assert not outage.is_alone


def test_silence_on_the_way_back_begins_it_anew() -> None:
    """Who loses it again has not returned."""
    outage = lost()
    outage.note_answer(5 * T)
    outage.note_silence(6 * T)
    outage.note_answer(7 * T)
    outage.note_answer(5 * T + RETURN_US)
    assert outage.is_alone
    outage.note_answer(7 * T + RETURN_US)
    assert not outage.is_alone
