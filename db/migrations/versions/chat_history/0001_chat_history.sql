-- What the agent of chat history writes; counts leave room on their pages, so that a new one touches no index.
CREATE TABLE chat_histories (
    id                              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source                          text NOT NULL DEFAULT '',
    outbox_id                       bigint NOT NULL,
    user_id                         bigint NOT NULL,
    chat_id                         text NOT NULL,
    role                            text NOT NULL,
    message_content                 text NOT NULL,
    reasoning_content               text,
    reasoning_duration_seconds      bigint,
    retry_group_id                  text,
    retry_index                     bigint,
    retry_from_user_message_id      bigint,
    retry_from_assistant_message_id bigint,
    tokens_consumed                 bigint,
    created_at                      timestamp(3) without time zone NOT NULL,
    CONSTRAINT chat_histories_message UNIQUE (source, outbox_id)
);

CREATE TABLE agent_chats (
    user_id         bigint,
    chat_id         text,
    message_count   bigint NOT NULL,
    last_message_at timestamp(3) without time zone NOT NULL,
    PRIMARY KEY (user_id, chat_id)
) WITH (fillfactor = 50);
