"""Delimited files mean one thing, or are refused with the line that could mean two."""

import codecs
import contextlib
import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.errors import EmptyInput, InputError, OptionError
from embedpipe.read import delimited
from embedpipe.read.delimited import DialectOptions
from embedpipe.read.text_file import TextFile

U = "http://a/"


def read(tmp_path, data, usual=",", **options):
    path = tmp_path / "t"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    found = delimited.detect(TextFile(str(path)), usual, DialectOptions(**options))
    rows = list(delimited.rows(TextFile(str(path)), found.dialect))
    assert len(rows) == found.rows
    return [list(found.header), *rows]


SWALLOWED = 'caption\turl\nplain\tU1\n"open only\tU2\nmiddle\tU3\nclose"\tU4\nend\tU5\n'.replace("U", U)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
@pytest.mark.parametrize("urls", [True, False])
def test_a_quote_that_could_swallow_rows_is_refused_with_its_line(tmp_path, order, delimiter, urls):
    text = SWALLOWED if urls else SWALLOWED.replace(U, "i")
    text = "\n".join(delimiter.join(line.split("\t")[::order]) for line in text.splitlines()) + "\n"
    with pytest.raises(InputError, match=r"line 3: .*quoting='none'"):
        read(tmp_path, text, delimiter)
    rows = read(tmp_path, text, delimiter, quoting="none")
    assert [row[::order][0] for row in rows[1:]] == ["plain", '"open only', "middle", 'close"', "end"]
    assert len(read(tmp_path, text, delimiter, quoting="minimal")) == 4


def test_a_swallowing_quote_is_refused_also_where_another_line_is_ragged(tmp_path):
    with pytest.raises(InputError, match="line 3: "):
        read(tmp_path, SWALLOWED.replace("middle", "mid\tdle\tU\nmiddle"), "\t")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f'caption\turl\n"Hello" she said\t{U}\n', '"Hello" she said'),
        (f'caption,url\n"Hello" she said,{U}\n', '"Hello" she said'),
        (f'caption,url\n5" pipe,{U}\n', '5" pipe'),
        (f'caption,url\n"a ""b"", c",{U}\n', 'a "b", c'),
        (f'caption\turl\n"a ""b"""\t{U}\n', 'a "b"'),
        (f'"caption"\t"url"\n"a b"\t"{U}"\n', "a b"),
        (f'caption,url\n"a b",{U}\n', "a b"),
        (f'caption,url\n"one\ntwo",{U}\n', "one\ntwo"),
        (f'caption,url\n"one, and\r\ntwo, and",{U}\n', "one, and\r\ntwo, and"),
        (f"caption;url\na, b;{U}\n", "a, b"),
        (f"caption|url\na, b|{U}\n", "a, b"),
        (f"caption,url\r\n\r\na,{U}\r\n", "a"),
        (f"caption,url\ra,{U}\r", "a"),
    ],
)
def test_the_reading_that_fits_every_row_is_taken(tmp_path, text, value):
    rows = read(tmp_path, text, "\t" if "\t" in text else ",")
    assert rows[1][0] == value
    assert rows[1][1] == U


@pytest.mark.parametrize(
    ("text", "usual", "said"),
    [
        (f'c\tu\na\t{U}\n"Hello"\t{U}\n', "\t", "line 3: quotes around a value"),
        (
            f'c,u\n"x",{U}\n"He" said,{U}\n',
            ",",
            "line 3: text follows a closing quote, but line 2 has a value in quotes",
        ),
        (f'c,u\n"a \\"b\\" c",{U}\n', ",", "line 2: text follows a closing quote"),
        (f'c,u\n"open,{U}\nb,c\nd,{U}\n', ",", None),
        (f'c,u\n"open,{U}\nb,c,d\n', ",", "line 2: a quote opens here that nothing closes"),
        ("c,u\na,b\nc,d,e\n", ",", r"line 3: 3 fields where the header has 2: 'c,d,e'.*`delimiter`"),
        ("c,u\na\n", ",", "line 2: 1 fields"),
        ("c,c\na,b\n", ",", "the column 'c' is there twice"),
        ("c,u\na,\0b\n", ",", "line 2: a NUL byte.*encoding='utf-16-le'"),
        (b"c,u\na,b\nb,caf\xe9\n", ",", r"line 3: not UTF-8.*`encoding='cp1252'`"),
        ("c,u\na,b\n".encode("utf-16-le"), ",", "line 1: a NUL byte"),
    ],
)
def test_what_fits_no_reading_or_two_is_named_by_line(tmp_path, text, usual, said):
    if said is None:  # one quote that nothing closes, and nothing else speaks for quoting: it belongs to the text
        assert len(read(tmp_path, text, usual)) == 4
        return
    with pytest.raises(InputError, match=said):
        read(tmp_path, text, usual)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("mark", [None, codecs.BOM_UTF16_BE])
def test_byte_order_marks_tell_the_encoding(tmp_path, encoding, mark):
    text = f'ü,u\n"日本, 🎈",{U}\n'
    data = text.encode(encoding) if mark is None else mark + text.encode("utf-16-be")
    assert read(tmp_path, data) == [["ü", "u"], ["日本, 🎈", U]]


def test_other_encodings_are_read_when_given(tmp_path):
    data = f"c,u\ncafé,{U}\n"
    assert read(tmp_path, data.encode("cp1252"), encoding="cp1252")[1][0] == "café"
    assert read(tmp_path, data.encode("utf-16-le"), encoding="utf-16-le")[1][0] == "café"
    assert read(tmp_path, "c,u\n日本,x\n".encode("shift_jis"), encoding="shift_jis")[1][0] == "日本"
    with pytest.raises(InputError, match="line 2: not cp932"):
        read(tmp_path, data.encode("cp1252"), encoding="cp932")
    with pytest.raises(OptionError, match="`encoding='latin-99'`: unknown"):
        read(tmp_path, data, encoding="latin-99")


def test_options_are_checked(tmp_path):
    for wrong in ({"quoting": "al"}, {"delimiter": ""}, {"delimiter": "ab"}, {"delimiter": '"'}, {"delimiter": "\n"}):
        with pytest.raises(OptionError):
            DialectOptions(**wrong)
    assert read(tmp_path, "a:b\n1:2\n", delimiter=":") == [["a", "b"], ["1", "2"]]
    assert read(tmp_path, "a\tb\n1\t2\n", delimiter="tab") == [["a", "b"], ["1", "2"]]
    with pytest.raises(EmptyInput, match="not even a header"):
        read(tmp_path, "\n\n")


# Python's own writer forgets to quote a lone \r where lines end with \n.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)
tricky = st.lists(st.sampled_from(['"', ",", "\t", "\n", "\r\n", ";", "a", " ", "'", "\\", U]), max_size=6).map("".join)


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(st.lists(texts | tricky, min_size=n, max_size=n), min_size=1, max_size=6)
    ),
    st.sampled_from(delimited.DELIMITERS),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_a_csv_writer_wrote_comes_out_or_is_refused(tmp_path_factory, rows, delimiter, quoting, end, encoding):
    """Never a changed value: the writer's rows, or an error that a given quoting resolves."""
    header = [f"c{i}" for i in range(len(rows[0]))]
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([header, *rows])
    folder = tmp_path_factory.mktemp("csv")
    data = sink.getvalue().encode(encoding)
    rows = [row for row in rows if row]
    assert read(folder, data, delimiter, delimiter=delimiter, quoting="minimal") == [header, *rows]
    with contextlib.suppress(InputError):
        assert read(folder, data, delimiter, delimiter=delimiter) == [header, *rows]


@given(
    st.lists(st.lists(st.text("ab \"'", min_size=1, max_size=5), min_size=2, max_size=2), min_size=1, max_size=6),
    st.sampled_from(["\t", ","]),
)
def test_unquoted_text_comes_out_as_it_is_or_is_refused_or_is_valid_csv(tmp_path_factory, rows, delimiter):
    text = "".join(delimiter.join(row) + "\n" for row in [["c", "d"], *rows])
    folder = tmp_path_factory.mktemp("tsv")
    assert read(folder, text, delimiter, quoting="none") == [["c", "d"], *rows]
    try:
        found = read(folder, text, delimiter)
    except InputError:
        return
    enclosed = [[value[1:-1].replace('""', '"') if value[:1] == '"' else value for value in row] for row in rows]
    assert found[1:] in (rows, enclosed)
