-- save_chat_histories --
-- The messages of the batch, in the order of the batch, so that ids ascend within a conversation.
INSERT INTO chat_histories (
    source, outbox_id, user_id, chat_id, role, message_content, reasoning_content,
    reasoning_duration_seconds, retry_group_id, retry_index, retry_from_user_message_id,
    retry_from_assistant_message_id, tokens_consumed, created_at
)
SELECT source, outbox_id, user_id, conversation_id, role, message, reasoning_content,
       reasoning_duration_seconds, retry_group_id, retry_index, retry_from_user_message_id,
       retry_from_assistant_message_id, tokens_consumed, created_at
FROM json_to_recordset(CAST(%(messages)s AS json)) AS m (
    source text, outbox_id bigint, user_id bigint, conversation_id text, role text, message text,
    reasoning_content text, reasoning_duration_seconds bigint, retry_group_id text,
    retry_index bigint, retry_from_user_message_id bigint, retry_from_assistant_message_id bigint,
    tokens_consumed bigint, created_at timestamp(3)
);

-- save_agent_chats --
-- Each chat of the batch once, in the order given: [user_id, chat_id, messages, milliseconds since
-- 1970].
INSERT INTO agent_chats (user_id, chat_id, message_count, last_message_at)
SELECT (chat->>0)::bigint, chat->>1, (chat->>2)::bigint,
       timestamp '1970-01-01' + (chat->>3)::bigint * interval '1 millisecond'
FROM json_array_elements(CAST(%(chats)s AS json)) AS chat
ON CONFLICT (user_id, chat_id) DO UPDATE
SET message_count = agent_chats.message_count + excluded.message_count,
    last_message_at = greatest(agent_chats.last_message_at, excluded.last_message_at);
