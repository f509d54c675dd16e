# SPDX-License-Identifier: Apache-2.0
"""The rule language: what it means, where its errors point, and that nothing makes it hang."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from constrint import Model, RuleTextError, all_different, parse, read_file
from constrint.expr import evaluate
from constrint.text.lexer import KEYWORDS

EXAMPLE = """
# A tile that fits.
model "a tile";
var rows in [8, 16, 32];
var columns in 1..64;   # any number of columns
var banks in 2..32 step 6;
var parts divides 12;
"it fits": rows * columns <= 500;
"columns divide the width": 96 % columns == 0;
columns >= 3 & (rows != 16 | columns < 10);
rows == 8 -> banks in [8, 14] & !(parts == 1);
maximize rows * columns - banks // 2;
order parts smallest, banks largest;
"""


def test_the_example_means_what_it_says():
    m = parse(EXAMPLE)
    assert m.name == "a tile"
    assert [list(d)[:3] for d in m.domains] == [[8, 16, 32], [1, 2, 3], [2, 8, 14], [1, 2, 3]]
    assert [r.label for r in m.rules] == ["it fits", "columns divide the width", "", ""]
    best = m.solve()
    assert best.status == "optimal"
    assert best.values == {"rows": 32, "columns": 12, "banks": 2, "parts": 1}
    assert parse(m.text()).text() == m.text()
    assert parse(m.text()).solve().values == best.values
    m = parse("var a divides -6; minimize a; maximize -a")
    assert list(m.domains[0]) == [1, 2, 3, 6]
    assert m.solve().objectives == (1, -1)
    assert parse(m.text()).solve().objectives == (1, -1)


def test_first_rule_files_of_this_kind():
    """No declarations: names are positive, `;` joins, `|` binds tighter, `%` takes whole terms."""
    m = parse("A == [1, 2, 4]; B <= 9; A * B % 7 == 0; 12 % A * C == 0; A == 1 | B == 7;\n C <= 2")
    assert [v.name for v in m.variables] == ["A", "B", "C"]
    assert m.count() == 5
    found = {tuple(s.values()) for s in m.solutions()}
    truth = set()
    for a in (1, 2, 4):
        for b in range(1, 10):
            for c in (1, 2):
                if a * b % 7 == 0 and 12 % (a * c) == 0 and (a == 1 or b == 7):
                    truth.add((a, b, c))
    assert found == truth
    assert parse("A == [3]; B == [4]; A * B <= 10;").solve().status == "infeasible"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a + b * 2 ^ 2 == 9", "a + b * 4 == 9"),
        ("-a ^ 2 == -9", "-(a ^ 2) == -9"),
        ("a - b - 1 == 0", "(a - b) - 1 == 0"),
        ("2 ^ a ^ 2 <= 512", "2 ^ (a ^ 2) <= 512"),
        ("a + b % 3 == 0", "(a + b) % 3 == 0"),
        ("a // 2 * 2 == a", "(a // 2) * 2 == a"),
        ("a == 1 | b == 2 & a == 3", "a == 1 | (b == 2 & a == 3)"),
        ("a == 1 -> b == 2 -> a == 3", "a == 1 -> (b == 2 -> a == 3)"),
        ("! a == 1 & b == 2", "(!(a == 1)) & b == 2"),
        ("not a == 1 and b == 2 or b == 3", "(!(a == 1) & b == 2) | b == 3"),
        ("a in [1, 3..5]", "a == [1, 3, 4, 5]"),
        ("a != [1, 2]", "!(a in [1, 2])"),
        ("[2] <= a", "2 <= a"),
        ("2 <= a", "a >= 2"),
        ("5 > a", "a < 5"),
        ("a != [2]", "a != 2"),
        ("7 % a == 1", "a in [2, 3, 6]"),
        ("7 % a + b == 1", "7 % (a + b) == 1"),
        ("divides(a, 12)", "12 % a == 0"),
        ("max(a, b, 3) - min(a, b) == 2", "max(max(a, b), 3) - min(b, a) == 2"),
        ("abs(a - b) == 2", "a - b == 2 | b - a == 2"),
        ("ceil_div(a, 2) == 2", "a == 3 | a == 4"),
        ("count(a == 1) + count(b == 1) >= 1", "a == 1 | b == 1"),
        ("all_different(a, b)", "a != b"),
        ("a ** 2 == 4", "a ^ 2 == 4"),
        ("- -a == 2", "a == 2"),
        ("a == 1 => b == 1", "a == 1 -> b == 1"),
    ],
)
def test_precedence_and_spellings(text, same):
    head = "var a in 1..6; var b in 1..6;"
    first, second = parse(head + text), parse(head + same)
    assert sorted(map(str, first.solutions())) == sorted(map(str, second.solutions()))
    assert first.count() > 0
    assert parse(first.text()).text() == first.text()


REJECTS = [
    ("var a in 1..6;\na == b + 1;", 2, 6, "unknown name `b`"),
    ("var a in 1..6;\n\n# none\n\n a == c;", 5, 7, "unknown name `c`"),
    ("var alpha in 1..6;\nalpah == 1;", 2, 1, "did you mean `alpha`?"),
    ("a = 3;", 1, 3, "write == for equality"),
    ("a / 3 == 1", 1, 3, "write // for division"),
    ("a == 1.5", 1, 7, "only whole numbers"),
    ("a == 3x", 1, 6, "only whole numbers"),
    ("a ? 1", 1, 3, "'?' is not part of the language"),
    ("a == (b + 1;", 1, 12, "`)` is needed to close the bracket"),
    ("a == ;", 1, 6, "a number, a name or a bracket is needed, got `;`"),
    ("a == 1 b == 2", 1, 8, "`;` is needed at the end of a statement"),
    ("a + 1;", 1, 1, "a rule is needed here"),
    ("(a == 1) + 1 == 2", 1, 1, "write count(...)"),
    ("1 <= a <= 3", 1, 8, "comparisons do not chain"),
    ("a * [1, 2] == 2", 1, 5, "a list of several values stands only beside"),
    ("a == []", 1, 6, "an empty list"),
    ("a in 3", 1, 6, "a list such as [1, 2, 4] is needed"),
    ("a // 0 == 1", 1, 3, "division by zero"),
    ("var a in 0..3; var b in 1..9;\n b % a == 1", 2, 4, "division by zero: `a` may be 0"),
    ("var a in 1..9;\n2 ^ a ^ a ^ a == 1", 2, 7, "more than 4096 bits"),
    ("2 ^ 100000000 == a", 1, 3, "more than 4096 bits"),
    ("var a in 0..3; minimize 7 % a", 1, 27, "division by zero: `a` may be 0"),
    ("a ^ -1 == 1", 1, 3, "a power must be at least 0"),
    ("var a in 5..4", 1, 10, "5..4 is empty"),
    ("var a in [1]; var a in [2]", 1, 19, "a variable `a` already"),
    ("var in in 1..2", 1, 5, "write it in backquotes"),
    ("var a in 1..9 step 0", 1, 10, "a step of at least 1"),
    ("var a divides 0", 1, 15, "a number from 1 to"),
    ("order a upwards", 1, 9, "smallest or largest is needed"),
    ('"label" a == 1', 1, 9, "`:` is needed between a label and its rule"),
    ('"label: a == 1', 1, 1, "this string has no end"),
    ('include "other"', 1, 9, "only a file can include others"),
    ("max(a", 1, 6, "`)` is needed"),
    ("abs(a, b) == 1", 1, 1, "abs takes 1 argument(s), got 2"),
    ("divides(a, 2, 3)", 1, 1, "divides takes 2 argument(s), got 3"),
    ("(" * 300 + "a" + ")" * 300 + " == 1", 1, 61, "nested more than 60 levels deep"),
    ("9" * 2000 + " == a", 1, 1, "a number of 2000 digits"),
    ("var x in [1..99999999]", 1, 10, "a list of more than"),
    ("minimize a == 1", 1, 10, "a number is needed here"),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "message"), REJECTS, ids=[r[3] for r in REJECTS]
)
def test_rejects(text, line, column, message):
    with pytest.raises(RuleTextError) as caught:
        parse(text)
    error = caught.value
    assert message in str(error)
    assert (error.line, error.column) == (line, column), str(error)
    shown = str(error).splitlines()
    assert shown[0].startswith(f"text:{line}:{column}: ")
    assert shown[-1] == " " * (column + 1) + "^"


def test_includes(tmp_path):
    (tmp_path / "sizes.constrint").write_text("var a in 1..6;\nvar b in 1..6;\n")
    main = tmp_path / "main.constrint"
    main.write_text('include "sizes.constrint";\na * b == 12;\n')
    assert read_file(main).count() == 4
    (tmp_path / "sizes.constrint").write_text("var a in 1..6;\nvar b in 0..6;\n")
    main.write_text('include "sizes.constrint";\n7 % b == 1;\n')
    with pytest.raises(RuleTextError, match=r"main.constrint:2:3: division by zero"):
        read_file(main)
    (tmp_path / "sizes.constrint").write_text("var a in 0..6;\n7 % a == 1;\n")
    main.write_text('include "sizes.constrint";\na <= 5;\n')
    with pytest.raises(RuleTextError, match=r"sizes.constrint:2:3: division by zero"):
        read_file(main)
    (tmp_path / "sizes.constrint").write_text("var a in 1..6;\n")
    main.write_text('include "sizes.constrint";\na * q == 12;\n')
    with pytest.raises(RuleTextError, match=r"main.constrint:2:5: unknown name `q`"):
        read_file(main)
    main.write_text('include "missing.constrint";')
    with pytest.raises(RuleTextError, match="cannot be read"):
        read_file(main)


def test_includes_in_a_circle(tmp_path):
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / name).write_text(f'var {name} in 1..2;\ninclude "{other}";\n')
    with pytest.raises(RuleTextError, match=r"c:2:9: .*in a circle: a > b > c > a"):
        read_file(tmp_path / "a")
    (tmp_path / "a").write_text('include "a";')
    with pytest.raises(RuleTextError, match="in a circle: a > a"):
        read_file(tmp_path / "a")


def test_a_broad_include_tree_is_cut_off(tmp_path):
    for k in range(8):
        (tmp_path / f"f{k}").write_text(f'include "f{k + 1}"; include "f{k + 1}";' if k < 7 else "")
    with pytest.raises(RuleTextError, match="more than 100 files"):
        read_file(tmp_path / "f0")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleTextError, match="is not text in UTF-8"):
        read_file(tmp_path / "x")


def test_files_of_other_editors(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfvar x in 1..3;\r\nx >= 2;\r\n")
    assert read_file(tmp_path / "x").count() == 2


def test_names_that_no_file_can_have(tmp_path):
    (tmp_path / "a").write_text('include "x\0y";')
    with pytest.raises(RuleTextError, match=r"a:1:9: embedded null"):
        read_file(tmp_path / "a")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a").write_text('include "loop";')
    with pytest.raises(RuleTextError, match=r"loop:1:1: cannot be read"):
        read_file(tmp_path / "a")


def test_the_largest_number_survives_a_round_trip():
    m = Model()
    x = m.int("x", 0, 2**4095)
    m.require(x <= 2**4095)
    assert parse(m.text()).domains == m.domains


def test_names_that_are_words_of_the_language():
    m = Model()
    x, y = m.int("max", 1, 3), m.int("in", 1, 3)
    m.require(x + y == 4, 'a "quoted" label \\ with\nlines')
    m.order((y, "largest"))
    again = parse(m.text())
    assert again.text() == m.text()
    assert again.rules[0].label == m.rules[0].label
    assert again.solve().values == {"max": 1, "in": 3}


WORDS = [*sorted(KEYWORDS), "a", "b", "1", "2", "7", "0", "-1", '"l":', "..", "(", ")", "[", "]"]
SIGNS = ["+", "-", "*", "//", "%", "^", "==", "!=", "<=", ">", "&", "|", "!", "->", ";", ",", "\n"]


@settings(max_examples=400, deadline=2000, database=None)
@given(st.lists(st.sampled_from(WORDS + SIGNS), max_size=25))
@example(["!"] * 500)
@example(["-"] * 500 + ["a", "==", "1"])
@example(["a", "^"] * 200)
@example(["a", "->"] * 200)
@example(["a", "%"] * 300 + ["a", "==", "1"])
def test_no_tokens_do_harm(parts):
    _survives(" ".join(parts))


@settings(max_examples=400, deadline=2000, database=None)
@given(st.text(max_size=60))
def test_no_text_does_harm(text):
    _survives(text)


@settings(max_examples=200, deadline=2000, database=None)
@given(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 30), st.text(max_size=4))
def test_no_damage_does_harm(at, length, put):
    _survives(EXAMPLE[:at] + put + EXAMPLE[at + length :])


def _survives(text):
    """Either a model that can be written and solved within a budget, or an error of ours."""
    error = None
    try:
        m = parse(text)
    except RuleTextError as e:
        error = e
    if error is not None:
        assert 1 <= error.line <= text.count("\n") + 1
        assert error.column >= 1
        return
    assert parse(m.text()).text() == m.text()
    m.solve(max_nodes=20, time_limit=0.2)


def test_rules_without_values_or_operands_survive_a_round_trip():
    m = Model()
    x = m.int("x", 1, 3)
    m.require(x.isin([]) | (x == 2))
    m.require(all_different())
    again = parse(m.text())
    assert again.text() == m.text()
    assert list(again.solutions()) == list(m.solutions()) == [{"x": 2}]


def test_a_long_sum_is_one_node():
    """Of which every term is read once: 20,000 of them took minutes when each made a new sum."""
    signs = ["+", "-", "-", "+"] * 5_000
    text = " ".join(f"{sign} {i % 7 + 1} * x" for i, sign in enumerate(signs))
    model = parse(f"var x in [0..9]; 1 + 2 {text} <= x + 100;")
    left = model.rules[0].rule.args[0]
    value = 3 + sum((i % 7 + 1) * 5 * (1 if sign == "+" else -1) for i, sign in enumerate(signs))
    assert len(left.args) == 20_001
    assert evaluate(left, {"x": 5}) == value


def test_every_character_of_a_line_is_shown_as_one():
    with pytest.raises(RuleTextError) as caught:
        parse("\tx\0 == 1")
    assert str(caught.value).splitlines()[1:] == ["   x? == 1", "    ^"]


def test_a_long_line_is_shown_around_its_mistake():
    text = "x == 1 & " * 200 + "x = 2" + " & x == 1" * 200
    with pytest.raises(RuleTextError) as caught:
        parse(text)
    head, line, caret = str(caught.value).split("\n")
    assert head.startswith("text:1:1803: write == for equality")
    assert len(line) < 140
    assert line[caret.index("^")] == "="
    assert line.startswith("  ...")
