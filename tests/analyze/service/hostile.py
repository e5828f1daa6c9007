"""What hostile requests hold: statements and conditions in SQL, in earnest, as attacks and mutated; and requests of no form."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

STATEMENTS = (
    "SELECT * FROM runs",
    "SELECT label, count(*) AS n FROM utterances GROUP BY ALL ORDER BY n DESC LIMIT 3",
    "FROM scores SELECT layer, value WHERE metric = 'accuracy'",
    "WITH a AS (SELECT run_id, row FROM utterances) SELECT * FROM a JOIN receipts USING (run_id)",
    "PIVOT receipts ON shard IN (0, 1) USING count(*)",
    "DESCRIBE replies",
    "SUMMARIZE utterances",
    "SELECT u.text, r.text FROM utterances u LEFT JOIN replies r USING (run_id, row) QUALIFY row_number() OVER () < 5",
    "SELECT [1, NULL], {'a': 1}, MAP {'k': 2}, 'x'::BLOB, INTERVAL 1 DAY, 1e308::DOUBLE * 10, 'nan'::FLOAT, 2::HUGEINT ** 100",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 100) SELECT sum(n) FROM t",
    "SELECT unnest(range(5)), versions FROM receipts",
    "SELECT \"offset\", value FROM persistence WHERE reader = 'refit'",
    "FROM probes",
    "SELECT late FROM utterances",
)
"""What somebody in earnest may ask."""

ATTACKS = (
    "COPY runs TO '/tmp/stolen.csv'",
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "ATTACH '/etc/passwd' AS x",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_text('/etc/hosts')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM read_parquet('http://127.0.0.1:1/x')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT getenv('HOME')",
    "SELECT current_setting('temp_directory')",
    "SET memory_limit = '99GB'",
    "RESET GLOBAL enable_external_access",
    "PRAGMA database_list",
    "INSTALL httpfs",
    "LOAD '/tmp/x.duckdb_extension'",
    "EXPORT DATABASE '/tmp/stolen'",
    "IMPORT DATABASE '/tmp/stolen'",
    "CREATE TABLE x AS SELECT 1",
    "INSERT INTO runs VALUES (1)",
    "DELETE FROM utterances",
    "UPDATE utterances SET text = ''",
    "SELECT 1; DROP TABLE runs",
    "CALL pragma_version()",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table(['runs'])",
    "SELECT * FROM generate_series(1000000000000)",
    "SELECT * FROM range(1000000000000) a, range(1000000000000) b",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT * FROM t",
    "WITH RECURSIVE t(n) AS (SELECT 'x' UNION ALL SELECT n || n FROM t) SELECT max(length(n)) FROM t",
    "SELECT repeat('x', 1000000000)",
    "SELECT repeat(text, 100000000) FROM utterances",
    "SELECT range(100000000)",
    "SELECT list(a.text) FROM utterances a, utterances b, utterances c, utterances d",
    "SELECT string_agg(a.text || b.text, '') FROM utterances a, utterances b, utterances c",
    "SELECT printf('%1000000000d', 1)",
    "SELECT lpad('x', 2000000000, 'y')",
    "SELECT list_resize([1], 1000000000)",
    "SELECT regexp_matches(repeat('a', 30), '(a+)+$')",
    "SELECT array_agg(x) FROM range(50000000) t(x)",
    "SELECT bitstring('1', 1000000000)",
    "SELECT 1 / 0, sqrt(-1), ln(0)",
    "SELECT error('said')",
    "SELECT '\\ud800', chr(0), chr(1114111)",
    "SELECT 9223372036854775807 + 1",
    "SELECT 170141183460469231731687303715884105727::HUGEINT",
    "SELECT DATE '290309-12-22 (BC)', TIMESTAMP 'infinity', '-infinity'::DATE",
    "SELECT x FROM (VALUES (1), ('a')) t(x)",
    "SELECT * FROM utterances TABLESAMPLE 200%",
    "SELECT * FROM utterances LIMIT -1",
    "SELECT COLUMNS('.*') FROM runs",
    "EXPLAIN ANALYZE SELECT 1",
    "VACUUM",
    "CHECKPOINT",
    "SELECT nextval('x')",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM sqlite_master",
    "PREPARE x AS SELECT $1",
    "SELECT $1",
    "SELECT ?",
)
"""What must be refused, or end within the limits."""

CONDITIONS = (
    "label = 'joy'",
    "label = 'fear' AND n_tokens > 3",
    "row IN (SELECT row FROM utterances WHERE valence > 1)",
    "text LIKE '%é%' OR marks IS NULL",
    "row % 2 = 0",
    "isnan(odd)",
    "said > '1970-02-01'",
)
INJECTIONS = (
    "1=1; DROP TABLE utterances",
    "true) UNION SELECT 1 FROM read_csv('/etc/passwd') --",
    "row IN (SELECT content FROM read_text('/etc/passwd'))",
    "row IN (SELECT * FROM '/etc/passwd')",
    "row IN (SELECT * FROM range(1000000000000))",
    "(SELECT count(*) FROM range(100000000) a, range(100000000) b) > 0",
    "getenv('HOME') = ''",
    "current_setting('temp_directory') = ''",
    "1",
    "row",
    "NULL",
    "*",
    "count(*) > 0",
    "row_number() OVER () > 2",
    "unnest([true, false])",
    "text",
    "row = 1 ORDER BY row",
    "row FROM utterances",
    "$1",
    "? = 1",
    "EXISTS (FROM duckdb_settings())",
    "length(repeat(text, 100000000)) > 1",
    "error('x')",
    "row = 99999999999999999999999999999999999999999",
    "true -- ",
    "/* ",
    "'",
    "(" * 2000 + "true" + ")" * 2000,
    "NOT " * 3000 + "true",
    "row IN (" + "1," * 5000 + "2)",
    "\x00",
)
_WORDS = """
SELECT FROM WHERE GROUP BY ALL ORDER HAVING LIMIT OFFSET UNION EXCEPT JOIN LATERAL USING WITH RECURSIVE AS NULL NOT AND OR
runs utterances receipts scores probes replies row text label run_id n_tokens versions
* ( ) [ ] { } , ; . :: -> = <> ' " -- /* $1 ? é 😀 \0 0 -1 1e400 9223372036854775808 0x1F 'x' '/etc/passwd'
read_csv glob range unnest COPY ATTACH PRAGMA SET VALUES CASE WHEN THEN END CAST TRY_CAST lambda COLUMNS EXCLUDE
""".split()  # noqa: SIM905 - a list of them is four times as long
SITES = ("resid.last", "resid.all", "resid.offset", "final_norm.last", "resid.last ", "../resid", "")
_BRACKETS = (("(", ")"), ("[", "]"), ("{'a': ", "}"), ("SELECT (", ")"), ("NOT ", ""))
_JSON = "application/json"
_HEADERS = (
    *("Origin", "Sec-Fetch-Site", "Authorization", "Cookie"),
    *("Accept", "Range", "X-Forwarded-For", "Transfer-Encoding"),
)
_VALUES = ("null", "cross-site", "same-origin", "Bearer ", "a=b; =; ;", "bytes=0-1")
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)


@dataclass(frozen=True, slots=True)
class Raw:
    """A request that no OpenAPI describes."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes


@st.composite
def sql(draw: st.DrawFn, seeds: Sequence[str]) -> str:
    """A text of some seeds, as it is or changed here and there."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 3))):
        words = text.split(" ") if len(text) < 2000 else [text]
        place = draw(st.integers(0, len(words)))
        match draw(st.sampled_from(("insert", "replace", "drop", "double", "splice", "nest", "odd", "cut"))):
            case "insert":
                words.insert(place, draw(st.sampled_from(_WORDS)))
            case "replace":
                words[place : place + 1] = [draw(st.sampled_from(_WORDS))]
            case "drop":
                del words[place : place + 1]
            case "double":
                words[place:place] = words[place : place + 2]
            case "splice":
                other = draw(st.sampled_from(seeds))[:2000].split(" ")
                words[place:] = other[draw(st.integers(0, len(other))) :]
            case "nest":
                depth = draw(st.sampled_from((1, 3, 50, 1000)))
                opening, closing = draw(
                    st.sampled_from((("(", ")"), ("[", "]"), ("{'a': ", "}"), ("SELECT (", ")"), ("NOT ", "")))
                )
                words = [opening * depth, *words, closing * depth]
            case "odd":
                words.insert(place, draw(TEXT))
            case "cut":
                words = [" ".join(words)[: draw(st.integers(0, 80))]]
        text = " ".join(words)
    return text


def raw() -> st.SearchStrategy[Raw]:
    """Bodies, paths and headers as no client of this service would send them."""
    bodies = st.one_of(
        st.binary(max_size=200),
        st.sampled_from(
            (
                b"[" * 100_000,
                b'{"sql": ' * 50_000,
                b'{"sql": "SELECT 1", "limit": 1e400}',
                b'{"sql": "SELECT 1", "limit": NaN}',
                b'{"sql": "SELECT 1", "limit": ' + b"9" * 5000 + b"}",
                b'{"sql": "SELECT 1", "limit": 99999999999999999999}',
                b'{"sql": "SELECT 1", "limit": -1}',
                b'{"sql": "SELECT \'\\ud800\'"}',
                b'{"sql": "SELECT \'\\u0000\'"}',
                b'{"sql": "\\u0000"}',
                b'{"\\ud800": "\\udfff", "sql": "SELECT 1"}',
                b'{"sql": "SELECT 1", "sql": 2}',
                b'\xff\xfe{"sql": "SELECT 1"}',
                b'{"sql": "SELECT 1"}' + b" " * 2_000_000,
                b'{"sql": "' + b"(" * 90_000 + b'"}',
                b'{"sql": "SELECT ' + b"1+" * 40_000 + b'1"}',
                b"null",
                b"",
            )
        ),
    )
    kinds = st.sampled_from((_JSON, _JSON, f"{_JSON}; charset=utf-16", "text/plain", "multipart/form-data", ""))
    paths = st.one_of(
        st.sampled_from(
            (
                "/api/sql",
                "/api/sql",
                "/sign-in",
                "/page/..%2f..%2faccess.py",
                "/page/%2e%2e/access.py",
                "/page//etc/passwd",
                "/page/index.html",
                "/page/%00",
                "/api/runs/%00",
                "/api/runs/%ff%fe",
                "/api/runs/..%2f..",
                "/api/runs/?run=1",
                "//api/runs",
                "/api/runs/x/hidden?site=%00&layer=1",
                "/api/runs/x/utterances?rows=1&rows=" + "9" * 5000,
                "/openapi.json",
                "/docs",
                "/",
            )
        ),
        st.text(string.ascii_letters + string.digits + "/%.?&=;:@", max_size=40).map(lambda text: f"/{text}"),
    )
    methods = st.sampled_from(("GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"))
    printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
    extra = st.dictionaries(st.sampled_from(_HEADERS), st.one_of(st.sampled_from(_VALUES), printable), max_size=2)
    return st.builds(
        lambda method, path, kind, more, content: Raw(method, path, {"Content-Type": kind, **more}, content),
        methods,
        paths,
        kinds,
        extra,
        bodies,
    )
