# SPDX-License-Identifier: Apache-2.0
"""The examples in the README and in the docstrings run and say what they say."""

import doctest
import re
from pathlib import Path

import constrint
import constrint.model
from constrint import parse

README = (Path(constrint.__file__).parent / "README.md").read_text()
BLOCKS = re.findall(r"```(python)?\n(.*?)```", README, re.DOTALL)


def test_readme_programs_run(capsys):
    one_minute, tiles = (text for kind, text in BLOCKS if kind)
    names = {}
    exec(one_minute, names)
    out = capsys.readouterr().out
    assert "columns = 32 is possible, but then rows * columns is at most 256" in out
    assert "a tile: no solution, because these cannot hold together:" in out
    r = names["r"]
    assert (str(r.status), r["rows"], r["columns"], r.objective) == ("optimal", 32, 12, 384)
    broken = names["m"].explain({"rows": 32, "columns": 18})
    assert str(broken[0]) == "it fits: `rows * columns` is 576 and must be <= 500, by 76"
    exec(tiles, names)
    assert "16 does not divide 40" in capsys.readouterr().out
    assert names["lexicographic"](names["p"]).solve()["no"] == 8
    assert names["cheapest"](names["p"]).solve()["no"] == 1


def test_readme_rules_parse():
    (rules,) = (text for kind, text in BLOCKS if not kind)
    m = parse(rules)
    assert m.solve().values == {"rows": 32, "columns": 12}
    assert parse(m.text()).text() == m.text()


def test_docstrings():
    for module in (constrint, constrint.model):
        outcome = doctest.testmod(
            module, extraglobs={k: getattr(constrint, k) for k in constrint.__all__}
        )
        assert outcome.attempted > 0
        assert outcome.failed == 0
