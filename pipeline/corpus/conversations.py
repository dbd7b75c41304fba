"""Conversations: documents made of messages. Only the assistant's messages count in the loss.

A record of a source (a line of .jsonl, a row of parquet or of the hub) is one if it has

    messages             [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]
    prompt, completion   two texts: a message of the user, and the answer

and no text column. A chain of thought is a completion with its reasoning.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Role
    content: str


Conversation = tuple[Message, ...]
Content = str | Conversation
"""What a document holds."""


def content_columns(names: Collection[str], text_column: str) -> list[str]:
    """The columns of a record that hold its document. Raises ValueError if there are none."""
    for columns in ([text_column], ["messages"], ["prompt", "completion"]):
        if all(column in names for column in columns):
            return columns
    raise ValueError(
        f"no column {text_column!r} (data.text_column), nor messages, nor prompt and completion, "
        f"only {', '.join(map(str, names))}"
    )


def read_content(record: Any, text_column: str) -> Content:
    """The text or the conversation in a record. Raises ValueError that names the field and the rule."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{str(record)[:80]!r} must be a record")
    columns = content_columns(record, text_column)
    value = record[columns[0]]
    if columns == ["prompt", "completion"]:
        value = [{"role": "user", "content": value}, {"role": "assistant", "content": record["completion"]}]
    if isinstance(value, str):
        value.encode("utf-8")  # raises for half of a surrogate pair, which JSON can spell
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{columns[0]} ({str(value)[:80]!r}) must be text, or a list of messages")
    conversation = tuple(_message(message, f"message {number}") for number, message in enumerate(value))
    if conversation[-1].role != "assistant":
        raise ValueError(f"the last message ({conversation[-1].role}) must be the assistant's")
    return conversation


def _message(value: Any, name: str) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, Mapping) else (None, None)
    if role not in ROLES:
        raise ValueError(f"{name}: role ({role!r}) must be {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"{name}: content ({str(content)[:80]!r}) must be text")
    content.encode("utf-8")
    return Message(role, content)


def texts(content: Content) -> list[str]:
    """The text of a document, or of each message."""
    return [content] if isinstance(content, str) else [message.content for message in content]


def content_bytes(content: Content) -> int:
    """Bytes of UTF-8 text."""
    return sum(len(text.encode("utf-8")) for text in texts(content))
