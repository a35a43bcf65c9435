"""Frames: every documented shape is read, anything else is a typed error, in both directions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chucky import wire
from chucky.wire import Form, FrameError, parse_client_frame, parse_server_frame

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=12,
)
CLIENT_TYPES = ("init", "prompt", "user", "sdk_message", "control", "ping", "tool_result")
SERVER_TYPES = ("control", "sdk_message", "tool_call", "error", "pong", "result", "assistant")


def frame(**fields: Any) -> str:
    return json.dumps(fields)


@pytest.mark.parametrize("payload", [{}, [], None])
def test_init_without_options_is_read_in_every_spelling(payload: object) -> None:
    assert parse_client_frame(frame(type="init", payload=payload)) == wire.Init({})


def test_init_may_lack_its_payload() -> None:
    assert parse_client_frame('{"type":"init"}') == wire.Init({})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"type": "prompt", "payload": {"message": "hi", "options": {"model": "m"}}},
            wire.UserInput("hi", Form.WRAPPED, options={"model": "m"}),
        ),
        (
            {"type": "user", "session_id": "unknown", "message": {"role": "user", "content": "hi"}},
            wire.UserInput("hi", Form.FLAT),
        ),
        (
            {
                "type": "user",
                "uuid": "u1",
                "message": {"content": [{"type": "text", "text": "hi"}]},
            },
            wire.UserInput([{"type": "text", "text": "hi"}], Form.FLAT, "u1"),
        ),
        (
            {"type": "sdk_message", "payload": {"type": "user", "message": "hi"}},
            wire.UserInput("hi", Form.WRAPPED),
        ),
        (
            {"type": "sdk_message", "payload": {"type": "user_message", "content": "hi"}},
            wire.UserInput("hi", Form.WRAPPED),
        ),
        (
            {"type": "sdk_message", "payload": {"type": "user", "message": {"content": "hi"}}},
            wire.UserInput("hi", Form.WRAPPED),
        ),
    ],
)
def test_user_input_is_read_in_every_generation(
    fields: dict[str, Any], expected: wire.UserInput
) -> None:
    assert parse_client_frame(json.dumps(fields)) == expected


def test_other_client_frames_are_read() -> None:
    assert parse_client_frame(
        frame(type="control", payload={"action": "close", "data": None})
    ) == wire.Control("close", {})
    assert parse_client_frame(frame(type="ping", payload={"timestamp": 7})) == wire.Ping(7)
    assert parse_client_frame(
        frame(type="tool_result", payload={"callId": "c1", "result": "bare"})
    ) == wire.ToolReply("c1", "bare")
    assert parse_client_frame(frame(type="novelty")) == wire.Unknown("novelty")


def test_server_frames_are_read_wrapped_and_flat() -> None:
    message = {"type": "assistant", "message": {"role": "assistant", "content": []}}
    assert parse_server_frame(json.dumps(message)) == wire.SdkMessage(message)
    wrapped = frame(type="sdk_message", payload=message)
    assert parse_server_frame(wrapped) == wire.SdkMessage(message)
    assert parse_server_frame(
        frame(type="tool_call", payload={"callId": "c", "toolName": "t", "input": None})
    ) == wire.ToolCall("c", "t", {})


def test_the_oldest_result_envelope_is_read_as_a_result() -> None:
    old = frame(type="result", payload={"type": "result", "text": "4", "total_cost_usd": 0.1})
    parsed = parse_server_frame(old)
    assert isinstance(parsed, wire.SdkMessage)
    assert parsed.message["result"] == "4"
    assert parsed.message["subtype"] == "success"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", ""),
        ("[]", ""),
        ("null", ""),
        ("{not json", ""),
        ('{"type":"ping","payload":{"timestamp":NaN}}', ""),
        ('{"type":"user","message":{"content":"\\ud800"}}', ""),
        ("[" * 100_000, ""),
        ('{"type":"ping","payload":{"timestamp":1e999}}', ""),
        ("{}", "type"),
        ('{"type":7}', "type"),
        ('{"type":"init","payload":"x"}', "payload"),
        ('{"type":"user"}', "message"),
        ('{"type":"user","message":{"content":null}}', "message.content"),
        ('{"type":"user","message":{"content":[{"type":"tool_use"}]}}', "message.content[0]"),
        ('{"type":"user","uuid":5,"message":{"content":"x"}}', "uuid"),
        ('{"type":"prompt","payload":{}}', "payload.message"),
        ('{"type":"sdk_message","payload":{"type":"assistant"}}', "payload.type"),
        ('{"type":"control","payload":{}}', "payload.action"),
        ('{"type":"tool_result","payload":{"result":{}}}', "payload.callId"),
    ],
)
def test_a_malformed_client_frame_names_its_field(text: str, field: str) -> None:
    with pytest.raises(FrameError) as caught:
        parse_client_frame(text)
    assert caught.value.field == field
    assert str(caught.value)


def test_binary_is_refused() -> None:
    with pytest.raises(FrameError, match="binary"):
        parse_client_frame(b'{"type":"ping"}')


@given(text=st.text() | st.binary())
def test_any_bytes_give_a_frame_or_a_frame_error(text: str | bytes) -> None:
    for parse in (parse_client_frame, parse_server_frame):
        try:
            assert parse(text) is not None
        except FrameError:
            pass  # the one error there may be


@given(kind=st.sampled_from(CLIENT_TYPES + SERVER_TYPES), payload=JSON, message=JSON, uuid=JSON)
def test_any_json_gives_a_frame_or_a_frame_error(
    kind: str, payload: object, message: object, uuid: object
) -> None:
    text = frame(type=kind, payload=payload, message=message, uuid=uuid)
    for parse in (parse_client_frame, parse_server_frame):
        try:
            assert parse(text) is not None
        except FrameError:
            pass  # the one error there may be


@given(content=st.text(min_size=1), uuid=st.uuids(), session_id=st.text())
def test_what_the_client_makes_the_server_reads(
    content: str, uuid: object, session_id: str
) -> None:
    text = wire.user_frame(content, uuid=str(uuid), session_id=session_id)
    assert parse_client_frame(text) == wire.UserInput(content, Form.FLAT, str(uuid))


@given(message=st.dictionaries(st.text(), JSON))
def test_a_message_arrives_unchanged_in_both_forms(message: dict[str, Any]) -> None:
    message = {**message, "type": "assistant"}
    for form in Form:
        parsed = parse_server_frame(wire.message_frame(wire.message_text(message), form))
        assert parsed == wire.SdkMessage(message)


@given(text=st.text())
def test_a_partial_message_is_framed_without_being_parsed(text: str) -> None:
    event = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}
    for form in Form:
        framed = wire.stream_event_frame(json.dumps(event), session_id="s", uuid="u", form=form)
        parsed = parse_server_frame(framed)
        assert isinstance(parsed, wire.SdkMessage)
        assert parsed.message["event"] == event
        assert parsed.message["session_id"] == "s"
