"""config.yaml's text with a model or a key changed, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from manager.config import edit
from manager.config.edit import EditError
from manager.config.yaml_reader import LOADER

ENTRY = {
    "mode": "Chat",
    "GPU": {"required_devices": ["rtx 4060"], "command": ["serve", "--port", "${PORT}"]},
}
TEXT = """\
# Ours.
program:
  port: 8080   # of the pages

Local-Models:
  # The large one.
  Qwen:
    aliases: [qwen]   # short
    mode: Chat
    GPU:
      command: [serve, -c, 8192]
      # memory_mb: {"rtx 4060": 6000}

  Gemma:
    CPU: {command: [serve]}   # on the processor
    # the end of Gemma

  # Not yet:
  # Llama:
  #   CPU: {command: [serve]}
"""


def loaded(text: str) -> Any:
    return yaml.safe_load(text)


def lines_of_change(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that were taken out at one place, and those that stand there then."""
    old, new = before.split("\n"), after.split("\n")
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return old, new


def test_a_model_joins_after_the_last_one_and_its_comments_set_apart_as_the_others_are() -> None:
    text = edit.add_models(TEXT, {"Neu": ENTRY})
    assert lines_of_change(TEXT, text) == (
        [],
        [
            "  Neu:",
            "    mode: Chat",
            "    GPU:",
            "      required_devices: [rtx 4060]",
            "      command: [serve, --port, '${PORT}']",
            "",
        ],
    )
    assert text.index("the end of Gemma") < text.index("Neu:") < text.index("# Not yet:")


def test_several_models_join_at_once() -> None:
    text = edit.add_models(TEXT, {"A": ENTRY, "B": ENTRY})
    assert list(loaded(text)["Local-Models"]) == ["Qwen", "Gemma", "A", "B"]
    assert edit.remove_model(edit.remove_model(text, "A"), "B") == TEXT


def test_a_model_goes_with_its_comments_and_those_above_it_stay() -> None:
    text = edit.remove_model(TEXT, "Qwen")
    assert "# The large one.\n\n  Gemma:" in text
    assert "memory_mb" not in text
    assert loaded(text)["Local-Models"] == {"Gemma": {"CPU": {"command": ["serve"]}}}


def test_the_last_model_leaves_an_empty_section_that_can_be_filled_again() -> None:
    text = edit.remove_model(edit.remove_model(TEXT, "Qwen"), "Gemma")
    assert loaded(text)["Local-Models"] is None
    assert loaded(edit.add_models(text, {"Neu": ENTRY}))["Local-Models"] == {"Neu": ENTRY}


def test_of_another_entry_only_the_lines_that_differ_change() -> None:
    entry = loaded(TEXT)["Local-Models"]["Qwen"]
    assert edit.replace_model(TEXT, "Qwen", entry) == TEXT
    entry["aliases"] = ["qwen", "q"]
    text = edit.replace_model(TEXT, "Qwen", entry)
    assert lines_of_change(TEXT, text) == (
        ["    aliases: [qwen]   # short"],
        ["    aliases: [qwen, q]   # short"],
    )


def test_keys_of_an_entry_join_where_they_stand_in_the_new_one_and_others_go() -> None:
    entry = {"mode": "Chat", "pinned": True, "GPU": {"command": ["serve", "-c", 8192]}, "Z": {}}
    text = edit.replace_model(TEXT, "Qwen", entry)
    assert lines_of_change(TEXT, text)[1] == [
        "    mode: Chat",
        "    pinned: true",
        "    GPU:",
        "      command: [serve, -c, 8192]",
        '      # memory_mb: {"rtx 4060": 6000}',
        "    Z: {}",
    ]


def test_an_entry_is_shown_with_its_comments_and_put_back_as_it_is_written() -> None:
    shown = edit.entry_text(TEXT, "Qwen")
    assert shown == (
        "aliases: [qwen]   # short\n"
        "mode: Chat\n"
        "GPU:\n"
        "  command: [serve, -c, 8192]\n"
        '  # memory_mb: {"rtx 4060": 6000}\n'
    )
    assert edit.lines_of(TEXT, "Qwen") == range(7, 12)
    assert edit.replace_model(TEXT, "Qwen", edit.read_entry(shown)) == TEXT
    other = shown.replace("mode: Chat", "\n# why\nmode: Base  # here").replace("8192", "0.50")
    text = edit.replace_model(TEXT, "Qwen", edit.read_entry(other))
    assert lines_of_change(TEXT, text)[1] == [
        "",
        "    # why",
        "    mode: Base  # here",
        "    GPU:",
        "      command: [serve, -c, 0.50]",
    ]
    assert edit.entry_text(text, "Qwen") == other


def test_an_entry_joins_as_it_is_written() -> None:
    entry = edit.read_entry("# ours\r\nmode: Chat  # why\r\n\r\nCPU: {command: [x, 0.50]}\r\n")
    text = edit.add_models(TEXT, {"Neu": entry})
    assert "  Neu:\n    # ours\n    mode: Chat  # why\n\n    CPU: {command: [x, 0.50]}\n" in text
    assert edit.remove_model(text, "Neu") == TEXT
    json = edit.read_entry('{"CPU": {"command": ["x"]}}')
    text = edit.add_models(TEXT.replace("\n", "\r\n"), {"Neu": json})
    assert '  Neu:\r\n    {"CPU": {"command": ["x"]}}\r\n' in text


def test_an_entry_in_braces_is_shown_and_put_back_as_lines() -> None:
    shown = edit.entry_text(TEXT, "Gemma")
    assert shown == "{CPU: {command: [serve]}}\n".replace("{CPU", "CPU") or shown.startswith("CPU")
    text = edit.replace_model(TEXT, "Gemma", edit.read_entry("CPU:\n  command: [y]\n"))
    assert loaded(text)["Local-Models"]["Gemma"] == {"CPU": {"command": ["y"]}}


def test_comments_beside_an_entry_in_braces_stay_when_it_is_changed() -> None:
    entry = edit.read_entry("CPU:\n  command: [y]\n")
    braces = "Local-Models:\n  m: {CPU: {command: [x]}}  # keep me\n    # and me\n"
    assert edit.replace_model(braces, "m", entry) == (
        "Local-Models:\n  m:  # keep me\n    CPU:\n      command: [y]\n    # and me\n"
    )


@pytest.mark.parametrize("value", ["x", "~", "", "{}", "[a]", "|\n    x"])
def test_what_is_no_entry_yet_is_replaced_by_one(value: str) -> None:
    text = edit.replace_model(f"Local-Models:\n  m: {value}\n", "m", edit.read_entry("a: 1"))
    assert text == "Local-Models:\n  m:\n    a: 1\n"


def test_blank_lines_that_an_entry_would_take_as_its_own_refuse_it() -> None:
    entry = edit.read_entry("mode: Chat\nx: |+\n  y\n")
    with pytest.raises(EditError, match="blank line behind"):
        edit.add_models("Local-Models:\n  a: {}\n\nprogram:\n", {"m": entry})


@pytest.mark.parametrize("rest", ["", "\nx-a: 1\n"])
@pytest.mark.parametrize(
    ("end", "value"),
    [("|\n  run x", "run x\n"), ("|-\n  run x", "run x"), ("|+\n  run x\n", "run x\n\n")],
)
def test_an_entry_may_end_in_a_block_of_text(rest: str, end: str, value: str) -> None:
    entry = f"mode: Chat\ncommand: {end}\n"
    before = f"Local-Models:\n  a: {{}}{rest}"
    text = edit.add_models(before, {"m": edit.read_entry(entry)})
    assert loaded(text)["Local-Models"]["m"]["command"] == value
    assert edit.entry_text(text, "m") == entry
    assert edit.replace_model(text, "m", edit.read_entry(entry)) == text
    other = edit.replace_model(text, "m", edit.read_entry(entry.replace("Chat", "Base")))
    assert other == text.replace("Chat", "Base")


def test_an_entry_that_ends_in_the_cut_line_of_a_block_of_text_can_be_changed() -> None:
    text = "Local-Models:\n  m:\n    mode: Chat\n    command: |\n      run x"
    shown = edit.entry_text(text, "m")
    assert edit.replace_model(text, "m", edit.read_entry(shown)) == text
    other = edit.replace_model(text, "m", edit.read_entry(shown.replace("Chat", "Base")))
    assert other == text.replace("Chat", "Base") + "\n"


@pytest.mark.parametrize("text", ["", "program:\n  port: 1\n", "program:\n    port: 1"])
def test_an_entry_as_it_is_written_joins_a_file_without_models(text: str) -> None:
    after = edit.add_models(text, {"m": edit.read_entry("mode: Chat  # why\n")})
    step = "    " if "    " in text else "  "
    assert after.startswith(text)
    assert after.removeprefix(text).lstrip("\n").rstrip("\n") == (
        f"Local-Models:\n{step}m:\n{step}{step}mode: Chat  # why"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("", "a mapping"),
        ("- a", "a mapping"),
        ("{}", "a mapping"),
        ("a: [", "line 1 of the entry"),
        ("a: &x {b: 1}\nc: *x", "anchors"),
        ("a: *x", "anchor|alias|line 1"),
        ("[" * 200, "line 1"),
        ("---\na: 1", "something else"),
        ("a: 1\n...\n", "something else"),
    ],
)
def test_what_is_no_entry_is_refused(entry: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        edit.add_models(TEXT, {"Neu": edit.read_entry(entry)})


def test_a_long_command_is_on_lines_of_the_usual_width() -> None:
    command = ["serve", "it's, [x]", 'say "x, y" \\ z', "a\nb, c", "--port", "${PORT}"] * 5
    text = edit.written({"s": {"command": command, "long": ["x" * 200, "y"]}})
    assert loaded(text) == {"s": {"command": command, "long": ["x" * 200, "y"]}}
    assert sum(len(line) > 96 for line in text.splitlines()) == 1
    added = edit.add_models(TEXT, {"Neu": {"s": {"command": command}}})
    assert loaded(added)["Local-Models"]["Neu"] == {"s": {"command": command}}


def test_schemes_in_another_order_are_written_in_that_order() -> None:
    text = edit.add_models("", {"m": {"A": {"command": ["a"]}, "B": {"command": ["b"]}}})
    entry = {"B": {"command": ["b"]}, "A": {"command": ["a"]}}
    assert list(loaded(edit.replace_model(text, "m", entry))["Local-Models"]["m"]) == ["B", "A"]


def test_an_entry_in_braces_becomes_one_of_lines() -> None:
    text = edit.replace_model(TEXT, "Gemma", {"CPU": {"command": ["serve", "-v"]}})
    assert "    CPU:\n      command: [serve, -v]\n" in text
    assert loaded(text)["Local-Models"]["Gemma"] == {"CPU": {"command": ["serve", "-v"]}}


@pytest.mark.parametrize(
    "value",
    [
        *(
            "on",
            "8080",
            "1:30",
            "010",
            "",
            " ",
            "~",
            "null",
            "a: b",
            "a #b",
            "- a",
            "*a",
            "&a",
            "!a",
        ),
        *(
            "${PORT}",
            "C:\\x",
            "it's",
            'say "x"',
            "é🎉",
            "x\ny",
            "x\ty",
            "\x85",
            "\u2028",
            "<<",
            "=",
        ),
        *("%x", "@x", "`x", "{x", "x" * 300, "x " * 200, "  x  ", "2020-01-01", "0x1F", "1e3", "y"),
        *(True, None, 0, -1, 1.5, 1e30, 10**18, [], {}, [[]], [{"a": [1]}], {"a": {"b": {"": ""}}}),
    ],
)
def test_what_is_written_is_read_as_what_it_was(value: Any) -> None:
    text = edit.add_models(TEXT, {"Neu": {"env": value, "list": [value], "deep": {"x": [[value]]}}})
    assert loaded(text)["Local-Models"]["Neu"]["list"] == [value]
    assert edit.remove_model(text, "Neu") == TEXT
    if isinstance(value, str):
        named = edit.add_models(TEXT, {f"n{value}": {value: 1}})
        assert loaded(named)["Local-Models"][f"n{value}"] == {value: 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", object(), {1: 2}, "\ud800"])
def test_what_is_no_data_is_refused(value: Any) -> None:
    with pytest.raises(EditError):
        edit.add_models(TEXT, {"Neu": {"env": value}})


def test_data_deeper_than_the_reader_takes_is_refused() -> None:
    data: Any = 1
    for _ in range(100_000):
        data = [data]
    with pytest.raises(EditError, match="100 levels"):
        edit.add_models(TEXT, {"Neu": {"x": data}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "Local-Models:\n  m: {}\n"),
        ("# none\n", "# none\nLocal-Models:\n  m: {}\n"),
        ("---\n", "---\nLocal-Models:\n  m: {}\n"),
        ("program:\n    port: 1", "program:\n    port: 1\nLocal-Models:\n    m: {}"),
        ("Local-Models:", "Local-Models:\n  m: {}"),
        ("Local-Models: {}  # none\nprogram:\n", "Local-Models:  # none\n  m: {}\nprogram:\n"),
        ("Local-Models: ~\r\n", "Local-Models:\r\n  m: {}\r\n"),
        ("Local-Models:\n  # a: here\n# b\n", "Local-Models:\n  # a: here\n  m: {}\n# b\n"),
        ('"Local-Models":\n    a: {}\n', '"Local-Models":\n    a: {}\n    m: {}\n'),
        ("Local-Models:\n  a: {}\n...\n", "Local-Models:\n  a: {}\n  m: {}\n...\n"),
        ("\ufeffLocal-Models:\n  a: {}\n", "\ufeffLocal-Models:\n  a: {}\n  m: {}\n"),
        ("Local-Models:\n  a: x\n   y\n # c\n", "Local-Models:\n  a: x\n   y\n  m: {}\n # c\n"),
        ("Local-Models:\n  a: |+\n    x\n\n", "Local-Models:\n  a: |+\n    x\n\n  m: {}\n"),
        ("Local-Models:\n  a: |\n    x\n\n", "Local-Models:\n  a: |\n    x\n  m: {}\n\n"),
        ("Local-Models:\n  a: {\n    }\n", "Local-Models:\n  a: {\n    }\n  m: {}\n"),
        ("Local-Models:\n  a:\t{}\t# \tc\n", "Local-Models:\n  a:\t{}\t# \tc\n  m: {}\n"),
    ],
)
def test_a_model_joins_a_file_of_any_shape(text: str, expected: str) -> None:
    assert edit.add_models(text, {"m": {}}) == expected


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("{Local-Models: {a: {}}}", "a", "not one key a line"),
        ('{"Local-Models": {}}', "a", "not one key a line"),
        ("- 1\n", "a", "not one key a line"),
        ("Local-Models: {a: {}, b: {}}\n", "a", "in braces"),
        ("Local-Models:\n  b: {}\n", "a", "no entry of its own"),
        ("Local-Models:\n  <<: {a: {}}\n", "a", "no entry of its own"),
        ("x-a: &x {a: {}}\nLocal-Models: *x\n", "a", "no entry of its own"),
        ("Local-Models:\n  a: &x {}\n  b: *x\n", "a", "shares an anchor"),
        ("Local-Models:\n  a:\n  - {\n", "a", "line 3"),
    ],
)
def test_what_cannot_be_removed_alone_is_refused(text: str, name: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        edit.remove_model(text, name)


@pytest.mark.parametrize("value", ["{mode: Chat}", "mode: Chat\n    n: 1"])
def test_an_entry_under_a_long_form_of_key_is_not_shown(value: str) -> None:
    with pytest.raises(EditError, match="`\\?` and `:`"):
        edit.entry_text(f"Local-Models:\n  ? m\n  : {value}\n", "m")


def test_a_comment_in_the_braces_of_an_empty_section_is_not_lost() -> None:
    with pytest.raises(EditError, match="in braces"):
        edit.add_models("Local-Models: {\n  # Later: Qwen\n}\n", {"m": {}})


def test_what_would_change_another_model_is_refused() -> None:
    text = "Local-Models:\n  a: |\n    no line end"  # which it has once a line follows
    with pytest.raises(EditError, match="something else"):
        edit.add_models(text, {"m": {}})


@pytest.mark.parametrize("entry", ["*b", "&c {n: 1}", "{<<: *b}", "!!map {}", "{s: {env: *b}}"])
def test_an_entry_that_shares_anchors_is_not_replaced(entry: str) -> None:
    text = f"x-b: &b {{n: 1}}\nLocal-Models:\n  a: {entry}\n"
    with pytest.raises(EditError, match="anchors, merge keys or tags"):
        edit.replace_model(text, "a", {"n": 3})


def test_an_entry_that_only_uses_an_anchor_can_be_removed_and_others_may_join() -> None:
    text = "x-b: &b {n: 1}\nLocal-Models:\n  a: *b\n  c: {}\n"
    assert edit.remove_model(text, "a") == text.replace("  a: *b\n", "")
    assert edit.add_models(text, {"d": {}}) == text + "  d: {}\n"


@pytest.mark.parametrize("name", ["x" * 200, "a: b", "on", "模型 " * 40, "a/b", "#x", "- x"])
def test_a_model_of_any_name_joins_and_goes(name: str) -> None:
    for entry in (ENTRY, edit.read_entry("s:\n  command: [x]\n")):
        text = edit.add_models(TEXT, {name: entry})
        assert list(loaded(text)["Local-Models"]) == ["Qwen", "Gemma", name]
        assert edit.remove_model(text, name) == TEXT
        shown = edit.read_entry(edit.entry_text(text, name))
        assert edit.replace_model(text, name, shown) == text


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(EditError, match="Gemma already"):
        edit.add_models(TEXT, {"Gemma": ENTRY})


def test_a_small_text_that_stands_for_much_takes_no_long_time() -> None:
    bomb = "x-0: &x0 [1]\n" + "".join(
        f"x-{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 60)
    )
    assert edit.add_models(bomb, {"m": {}}) == bomb + "Local-Models:\n  m: {}\n"
    loop = "x-a: &x [*x]\n"
    assert edit.add_models(loop, {"m": {}}) == loop + "Local-Models:\n  m: {}\n"


COMMENT = st.sampled_from(
    ["", "", "", "# c", "  # c", "   # c", "    # c", "      # c\tand", " # a: {", "        # 'x"]
)
AFTER = st.sampled_from(["", "", "  # why", " #", "\t# tab"])
VALUE = st.sampled_from(
    [
        *(
            "x",
            "'x'",
            '"x y"',
            "[a, b]",
            "{a: 1}",
            "[]",
            "{}",
            "",
            "~",
            "!!str 5",
            "*base",
            "*list",
        ),
        *("|\n+ a\n\n+ b", ">-\n+ a\n+ # no comment", "|+\n+ a\n\n", "\n+- a\n+- b: 1\n+  c: 2"),
        *("[a,\n+ # in it\n+ b]", "x\n+ y", "'x\n\n+ y'", "&own [a]", "\n+<<: *base\n+k: 1"),
    ]
)
NAMES = ["m", '"m 2"', "'3'", "m-4", "模型"]


@st.composite
def configs(draw: st.DrawFn) -> str:
    """A file with a model or more, its comments and blank lines anywhere."""
    step, root = draw(st.sampled_from([2, 4])), draw(st.sampled_from([0, 0, 0, 1]))
    lines: list[str] = []

    def put(indent: int, line: str) -> None:
        above = draw(st.lists(COMMENT, max_size=2))
        first, *others = line.split("\n")
        pad = " " * (root + indent * step)
        deeper = " " * (root + indent * step + step)
        after = draw(AFTER) if first[-1:] not in "[{" and "\n" not in line else ""
        lines.extend([*above, pad + first + after])
        lines.extend(other.replace("+", deeper, 1) for other in others)

    if draw(st.booleans()):
        lines.append("---")
    put(0, "x-base: &base {k: 1}")
    put(0, "x-list: &list [1, 2]")
    sections = draw(st.permutations(["program", "Local-Models"]))
    for section in sections:
        put(0, f"{section}:")
        if section == "program":
            put(1, f"port: {draw(VALUE)}")
            continue
        for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
            if draw(st.booleans()):
                put(1, f"{name}: {draw(VALUE)}")
                continue
            put(1, f"{name}:")
            put(2, f"a: {draw(VALUE)}")
            put(2, f"s: {draw(VALUE)}")
    lines += draw(st.lists(COMMENT, max_size=3))
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n", "\n\n", "\n...\n"]))
    text = text.replace("\n", draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])))
    return draw(st.sampled_from(["", "", "\ufeff"])) + text


def composed(text: str) -> Any:
    try:
        return yaml.load(text.removeprefix("\ufeff"), Loader=LOADER)
    except yaml.YAMLError:
        return None


def place_of(text: str, name: str) -> tuple[int, int]:
    """Where a model's key begins, and the next key of a model or of the file."""
    root = yaml.compose(text, Loader=LOADER)
    models = next(value for key, value in root.value if key.value == "Local-Models")
    keys = [key for key, _ in (*root.value, *models.value)]
    starts = [*sorted(key.start_mark.index for key in keys), len(text)]
    begin = next(key.start_mark.index for key, _ in models.value if key.value == name)
    after = starts[starts.index(begin) + 1]
    return begin, after if after == len(text) else len(text[:after].rstrip(" "))


@given(configs())
@settings(max_examples=40, deadline=None)
def test_adding_and_removing_a_model_gives_the_same_bytes(text: str) -> None:
    before = composed(text)
    assume(before is not None)
    try:
        added = edit.add_models(text, {"Neu": ENTRY})
    except EditError:
        # A block of text that ends with the file has another value once a line follows.
        assert "|" in text or ">" in text
        assert text[-1] not in "\r\n"
        return
    after = composed(added)
    assert after["Local-Models"].pop("Neu") == ENTRY
    assert after == before
    assert edit.remove_model(added, "Neu") == text


@given(configs(), st.data())
@settings(max_examples=25, deadline=None)
def test_a_model_that_is_removed_or_replaced_leaves_the_others_as_they_are(
    text: str, data: st.DataObject
) -> None:
    before = composed(text)
    assume(before is not None)
    name = data.draw(st.sampled_from(list(before["Local-Models"])))
    entry = data.draw(st.sampled_from([ENTRY, {"a": "x", **ENTRY}, {"s": [1], "a": None}]))
    for expected, change in (
        (None, lambda: edit.remove_model(text, name)),
        (entry, lambda: edit.replace_model(text, name, entry)),
    ):
        try:
            changed = change()
        except EditError:
            continue
        after = composed(changed)
        models = {**before["Local-Models"]}
        models = models | {name: expected} if expected else models
        if not expected:
            del models[name]
        assert (after.pop("Local-Models") or {}) == models
        assert after == {key: before[key] for key in before if key != "Local-Models"}
        plain, changed = text.removeprefix("\ufeff"), changed.removeprefix("\ufeff")
        entry_lines, following = place_of(plain, name)
        assert changed.startswith(plain[:entry_lines].rstrip())
        assert changed.endswith(plain[following:])


@given(configs())
@settings(max_examples=40, deadline=None)
def test_an_entry_that_is_put_back_as_it_was_shown_changes_no_byte(text: str) -> None:
    before = composed(text)
    assume(before is not None)
    models = before["Local-Models"].items()
    for name in (name for name, data in models if data and isinstance(data, dict)):
        try:
            shown = edit.entry_text(text, name)
        except EditError:  # it has anchors or tags
            continue
        assert edit.replace_model(text, name, edit.read_entry(shown)) == text


STRANGE = st.text(
    st.sampled_from("  \n\n::--[]{}#&*!|>'\"%@`\t,?ab1\r\x85\u2028\ufeff\0\ud800"), max_size=60
)


@given(STRANGE, STRANGE, STRANGE)
@settings(max_examples=50, deadline=None)
def test_no_text_and_no_entry_end_in_another_error(text: str, name: str, entry: str) -> None:
    for before in (text, TEXT, f"Local-Models:\n{text}", f"{TEXT}{text}"):
        for added in (ENTRY, entry):
            try:
                found = edit.read_entry(added) if isinstance(added, str) else added
                after = edit.add_models(before, {name: found})
                edit.replace_model(after, name, edit.read_entry(edit.entry_text(after, name)))
            except EditError:
                continue
            if before == TEXT and "\u2028" not in entry:
                assert edit.remove_model(after, name) == before
