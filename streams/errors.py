"""Every error this project raises on purpose; the class decides what happens next.

StreamsError                     one clear line for a person, and an exit code
|-- UsageError             (2)   wrong usage, settings or deployment: a person has to change
                           something
|   |-- SettingsInvalid          a key of faust.yml or the environment: key, value, expectation
|   |-- RegistryInvalid          events and agents that contradict each other: both places named
|   `-- NotMigrated              the database lacks what `streams migrate` creates
|-- ServiceUnreachable     (3)   PostgreSQL or Kafka does not answer
|-- OutboxError                  raised to business code by streams.outbox
|   |-- OutboxNotConfigured      enqueue before start: never a silent no-op
|   |-- OutboxDisabled           enqueue while `outbox.enabled` is false
|   `-- PayloadInvalid           refused where it entered: biz_type, field, type, size, expectation
`-- MessageError                 raised by handlers and the codec about one message
    |-- Reject                   dead now: trying again cannot help
    `-- Retry                    try again, not before `after` seconds

Exit codes: 0 fine, 1 the answer is bad news, 2 wrong usage or settings, 3 a service cannot be
reached.
"""

from __future__ import annotations


class StreamsError(Exception):
    """One clear line for a person; `exit_code` is what a command ends with."""

    exit_code = 1


class UsageError(StreamsError):
    """Wrong usage, settings or deployment: a person has to change something first."""

    exit_code = 2


class SettingsInvalid(UsageError):
    """A setting has an unknown key, a wrong type or contradicts another one."""


class RegistryInvalid(UsageError):
    """Events and agents contradict each other; the message names both places."""


class NotMigrated(UsageError):
    """The database lacks tables, the publication or the slot that `streams migrate` creates."""


class ServiceUnreachable(StreamsError):
    """PostgreSQL or Kafka does not answer at the configured address."""

    exit_code = 3


class OutboxError(StreamsError):
    """Raised to business code by `streams.outbox`."""


class OutboxNotConfigured(OutboxError):
    """`enqueue` was called before `outbox.start`, or after `outbox.close`."""


class OutboxDisabled(OutboxError):
    """`enqueue` was called while `outbox.enabled` is false; `record` handles both cases."""


class PayloadInvalid(OutboxError):
    """A payload was refused where it entered.

    The message names biz_type, field, type, size and expectation, never text.
    """


class MessageError(StreamsError):
    """About one message (`outbox_id`), or about the whole batch when `outbox_id` is None.

    `code` is a short stable word for filters and metrics; the text never holds message text.
    """

    code = "handler"

    def __init__(
        self, reason: str, *, outbox_id: int | None = None, code: str | None = None
    ) -> None:
        super().__init__(reason)
        self.outbox_id = outbox_id
        if code is not None:
            self.code = code


class Reject(MessageError):
    """Dead now: trying this message again cannot help."""

    code = "rejected"


class Retry(MessageError):
    """Try this message again, not before `after` seconds (None: the usual backoff)."""

    code = "retry"

    def __init__(
        self,
        reason: str = "the handler asked for a retry",
        *,
        after: float | None = None,
        outbox_id: int | None = None,
    ) -> None:
        super().__init__(reason, outbox_id=outbox_id)
        self.after = after
