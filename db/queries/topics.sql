-- note_topics --
-- Topics as Kafka has them now; those that are known stay as they were first seen, but for a number
-- of partitions that grew.
INSERT INTO outbox_topics AS t (topic, topic_id, cluster_id, partitions)
SELECT topic, topic_id, cluster_id, partitions
FROM json_to_recordset(%(topics)s)
     AS seen (topic text, topic_id text, cluster_id text, partitions integer)
ON CONFLICT (topic, topic_id) DO UPDATE SET partitions = excluded.partitions
WHERE t.partitions <> excluded.partitions;

-- noted_topics --
-- Every topic that was ever seen under each name.
SELECT topic, topic_id, cluster_id FROM outbox_topics;
