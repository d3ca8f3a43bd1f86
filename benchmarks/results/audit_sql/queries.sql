-- The queries of the audit in duckdb's SQL, as measured (see results.json). Tables: data and other
-- (rows to audit and held-out rows, columns of plaudit.data.audit.measure), response (one line per
-- response with its row and its place in the row).

-- judgement
CREATE TEMP TABLE judgement AS
SELECT one.row, "group" AS prompt, least(one.digest, other.digest) AS low,
       greatest(one.digest, other.digest) AS high,
       sign(one.grade - other.grade) * if(one.digest < other.digest, 1, -1) AS won,
       sign(one.grade - other.grade) * (one.characters::bigint - other.characters) AS longer
FROM response AS one JOIN response AS other USING (row) JOIN data USING (row)
WHERE one.place < other.place AND (responses <= 8 OR other.place = one.place + 1)
  AND reason IN (0, 4) AND one.digest != other.digest
  AND NOT isnan(one.grade) AND NOT isnan(other.grade);

-- vote
CREATE TEMP TABLE vote AS
SELECT prompt, low, high, count_if(won = 1) AS "for", count_if(won = -1) AS against,
       count_if(won = 0) AS ties
FROM judgement GROUP BY prompt, low, high;

-- exact_duplicates
SELECT row, first FROM (
    SELECT row, min(row) OVER (PARTITION BY row_key) AS first FROM data)
WHERE row != first ORDER BY row;

-- opposite_labels
WITH opposed AS (
    SELECT *, sign("for" - against) AS balance,
    FROM judgement JOIN vote USING (prompt, low, high)
    WHERE "for" > 0 AND against > 0 AND judgement.won != 0)
SELECT row, max(won != balance)::int AS lost FROM opposed GROUP BY row ORDER BY row;

-- several_votes
SELECT count(*), sum("for" + against + ties),
       sum((greatest("for", against) = "for" + against + ties)::int),
       sum("for" * ("for" - 1) // 2 + against * (against - 1) // 2 + ties * (ties - 1) // 2),
       sum(("for" + against + ties) * ("for" + against + ties - 1) // 2)
FROM vote WHERE "for" + against + ties > 1;

-- shared_with_eval
SELECT data.row, min(other.row) FROM data JOIN other USING (prompt_key)
WHERE prompt_key != 0 GROUP BY data.row ORDER BY data.row;

-- split_column_leak
WITH named AS (SELECT row, "group", split FROM data WHERE split != 0),
largest AS (SELECT split FROM named GROUP BY split ORDER BY count(*) DESC, split LIMIT 1),
leaking AS (SELECT "group" FROM named GROUP BY "group" HAVING min(split) != max(split))
SELECT row, (split = (FROM largest))::int FROM named SEMI JOIN leaking USING ("group")
ORDER BY row;

-- tallies
SELECT 'responses' AS name, responses AS value, count(*) FROM data GROUP BY 2
UNION ALL SELECT 'turns', turns, count(*) FROM data GROUP BY 2
UNION ALL SELECT 'script', prompt_script, count(*) FROM data GROUP BY 2
ORDER BY 1, 2;
