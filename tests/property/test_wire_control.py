"""Laws of the control channel: messages survive any cut of the stream; anything else is a ControlError."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from penstock.testing.strategies import control_messages, damaged, hostile_bytes, splits
from penstock.wire.control import ControlDecoder, ControlError, Message, encode_message


@given(st.lists(control_messages(), max_size=4), st.data())
def test_messages_survive_any_cut_of_the_stream(messages: list[Message], data: st.DataObject) -> None:
    """Any split of the stream gives the messages that went in, in order."""
    stream = b"".join(map(encode_message, messages))
    decoder = ControlDecoder()
    assert [m for piece in data.draw(splits(stream)) for m in decoder.feed(piece)] == messages


def read_all(stream: bytes) -> None:
    """Decode whatever a stream holds; only ControlError, with a short message, is let pass."""
    message = ""
    try:
        ControlDecoder().feed(stream)
    except ControlError as error:
        message = error.message
    assert len(message) < 2_000


@given(control_messages(), st.data())
def test_a_damaged_message_is_a_control_error_at_worst(message: Message, data: st.DataObject) -> None:
    """No injury to a message, with or without its length, raises anything but ControlError."""
    whole = encode_message(message)
    read_all(data.draw(damaged(whole)))
    body = data.draw(damaged(whole[4:]))
    read_all(struct.pack("<I", len(body)) + body)


@given(hostile_bytes())
def test_any_bytes_are_a_control_error_at_worst(noise: bytes) -> None:
    """Bytes that are no message, alone or behind a true length, raise nothing but ControlError."""
    read_all(noise)
    read_all(struct.pack("<I", len(noise)) + noise)
