"""A config's text on a page: no secret in it, all else as it is, and saved it is the same again."""

from __future__ import annotations

import itertools
import json
import textwrap

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from manager.config.maskedtext import mask, unmask

TEXT = """\
# Ask Ada for the token: s3cr3t-1
program:
  TokenTracker: [Chat]   # what is billed
  queue: redis://:s3cr3t-2@cache:6379/0
  # API_KEY: s3cr3t-3
  # port: 3
Local-Models:
  Monkey:
    aliases: [ape]
    GPU:
      command: [vllm, serve, --api-key, s3cr3t-4, "--hf-token=s3cr3t-5", --my-key=s3cr3t-6]
      env: {API_KEY: s3cr3t-7, B_KEY: 's3cr3t-8', "C_KEY": "s3cr3t-9", OTHER: "*** x ***"}
    CPU:
      command:
        - sh
        - -c
        - |   # a note
          set -e
          HF_TOKEN=s3cr3t-10 vllm

          exec s3cr3t-11
      env:
        PEM_KEY: |
          s3cr3t-12
            s3cr3t-13

          s3cr3t-14
        A_TOKEN: s3cr3t-15
          s3cr3t-16
        B_TOKEN: &anchor s3cr3t-17   # the other's, too
        C: *anchor
        D_TOKEN: # s3cr3t-18
        PROXY: http://me:s3cr3t-19@proxy:3128
"""
SHOWN = """\
# Ask Ada for the token: <hidden 1>
program:
  TokenTracker: [Chat]   # <hidden 2>
  queue: redis://:<hidden 3>@cache:6379/0
  # API_KEY: <hidden 4>
  # port: 3
Local-Models:
  Monkey:
    aliases: [ape]
    GPU:
      command: [vllm, serve, --api-key, <hidden 5>, "--hf-token=<hidden 6>", --my-key=<hidden 7>]
      env: {API_KEY: <hidden 8>, B_KEY: <hidden 9>, "C_KEY": <hidden 10>, OTHER: "*** x ***"}
    CPU:
      command:
        - sh
        - -c
        - |   # a note
          <hidden 11>
          <hidden 12>

          <hidden 13>
      env:
        PEM_KEY: |
          <hidden 14>
            <hidden 15>

          <hidden 16>
        A_TOKEN: <hidden 17>
          <hidden 18>
        B_TOKEN: <hidden 19>   # <hidden 20>
        C: *anchor
        D_TOKEN: # <hidden 21>
        PROXY: http://me:<hidden 22>@proxy:3128
"""


def saved(edited: str, original: str = TEXT) -> str:
    text, problems = unmask(edited, original)
    assert problems == []
    return text


def refused(edited: str, original: str = TEXT) -> list[int]:
    """The lines at which something cannot be put back."""
    return [problem.line for problem in unmask(edited, original)[1]]


def test_every_secret_is_masked_where_it_stands_and_all_else_is_as_it_is() -> None:
    assert mask(TEXT) == SHOWN


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_text_that_nobody_touched_is_saved_as_it_was(line_end: str) -> None:
    text = TEXT.replace("\n", line_end)
    assert saved(mask(text), text) == text


def test_what_is_edited_beside_a_secret_leaves_it_as_it_was() -> None:
    changes = [
        ("[ape]", "[ape, gorilla]"),
        ("Monkey:", "Gorilla:"),
        ("cache:6379/0", "other:6380/1"),
        ("[vllm, serve, ", "[vllm, serve, --port, '1', "),
        ("OTHER:", "MORE: x, OTHER:"),
        ("B_KEY:", "BB_KEY:"),
        ("  # port: 3\n", "  # port: 4\n  # *** mine ***\n"),
    ]
    edited, expected = SHOWN, TEXT
    for before, after in changes:
        assert before in edited
        assert before in expected
        edited, expected = edited.replace(before, after), expected.replace(before, after)
    assert saved(edited) == expected


def test_a_secret_that_is_written_anew_is_the_new_one() -> None:
    edited = SHOWN.replace("API_KEY: <hidden 8>", "API_KEY: new").replace("<hidden 1>", "?")
    expected = TEXT.replace("API_KEY: s3cr3t-7", "API_KEY: new").replace("s3cr3t-1\n", "?\n")
    assert saved(edited) == expected


def test_a_secret_can_be_moved_to_where_it_is_hidden_as_well() -> None:
    moved = SHOWN.replace("C: *anchor", "E_KEY: <hidden 8>").replace("API_KEY: <hidden 8>, ", "")
    expected = TEXT.replace("C: *anchor", "E_KEY: s3cr3t-7").replace("API_KEY: s3cr3t-7, ", "")
    assert saved(moved) == expected
    commented = SHOWN.replace("        A_TOKEN: <hidden 17>", "        # A_TOKEN: <hidden 17>")
    assert "# A_TOKEN: s3cr3t-15\n" in saved(commented)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    aliases", "    # <hidden 8>\n    aliases"),
        ("  # port: 3", "  host: <hidden 8>"),
        ("[ape]", "[<hidden 8>]"),
        ("  Monkey:", "  <hidden 8>:"),
        ("  Monkey:", '  "token <hidden 8>":'),
        ("[ape]", '["token <hidden 8>"]'),
        ("--api-key, <hidden 5>", "<hidden 5>"),
        ("--my-key=<hidden 7>", "--max-kv=<hidden 7>"),
        ("redis://:<hidden 3>@", "redis://<hidden 3>"),
        ("[ape]", "[ape]  # <hidden 99>"),
        ("API_KEY: <hidden 8>", "API_KEY: <hidden 0>"),
    ],
)
def test_a_secret_is_not_put_where_it_would_be_shown_nor_one_that_there_is_not(
    before: str, after: str
) -> None:
    assert before in SHOWN
    line = SHOWN[: SHOWN.index(before)].count("\n") + 1
    assert line in refused(SHOWN.replace(before, after, 1))


def test_a_name_with_a_telling_word_does_not_keep_the_rest_from_being_saved() -> None:
    text = "Local-Models:\n  M:\n    aliases: [my token model]\n    S: {command: [x]}\n"
    shown = mask(text)
    assert "token model" not in shown
    assert saved(shown.replace("[x]", "[y]"), text) == text.replace("[x]", "[y]")


def test_what_only_looks_like_a_mark_stays_as_it_is() -> None:
    text = "a: <hidden 1>\nAPI_KEY: s3cr3t\n# <hidden 7>\n"
    assert saved(mask(text), text) == text


@pytest.mark.parametrize(
    "broken",
    [
        TEXT + "  x: [\n",
        TEXT.replace("aliases: [ape]", "aliases: [ape"),
        TEXT.replace("program:", "\tprogram:"),
        TEXT + "--- second\n",
        TEXT + "x: *nowhere\n",
        TEXT + "x: \0\n",
        TEXT + "[" * 5000,
    ],
)
def test_a_file_that_is_no_yaml_shows_no_secret_and_can_be_saved_again(broken: str) -> None:
    shown = mask(broken)
    assert "s3cr3t" not in shown
    assert shown.count("\n") == broken.count("\n")
    assert saved(shown, broken) == broken


@pytest.mark.parametrize(
    "text",
    [
        "command: [x,\n  --api-key,\n  s3cr3t]\n",
        "command: [x, --api-key, s3cr3t]\n",
        "command:\n- --api-key\n- s3cr3t\n",
        "command: >-\n  serve --api-key\n  s3cr3t\n",
        "command: |\n  serve --api-key \\\n  s3cr3t\n",
        'API_KEY: "s3cr3t\n  s3cr3t"\n',
        "API_KEY:\n  s3cr3t\n",
        "API_KEY:\n  - s3cr3t\n  - s3cr3t\n",
        "API_KEY: |\n  A: s3cr3t\n\n  s3cr3t\n",
        '"API_KEY": "s3cr3t",\n',
        "env: {API_KEY=s3cr3t}\n",
        "url: http://me:s3cr3t@host/\n",
    ],
)
def test_the_lines_of_a_broken_file_and_of_a_comment_are_rather_hidden(text: str) -> None:
    assert "s3cr3t" not in mask(text + "x: [\n")
    comment = textwrap.indent(text, "#  ", lambda _: True)
    shown = mask("a: 1\n" + comment)
    assert "s3cr3t" not in shown
    assert saved(shown + "b: 2\n", "a: 1\n" + comment) == "a: 1\n" + comment + "b: 2\n"


@pytest.mark.parametrize(
    "text",
    [
        "env: {API_KEY=s3cr3t}",
        'env: {"API_K\\x45Y": s3cr3t}',
        'command: ["HF_TOK\\x45N=s3cr3t"]',
        "API_KEY: &s3cr3t",
        "API_KEY: !s3cr3t",
        "API_KEY: #s3cr3t",
        "API_KEY: &s3cr3t x\nb: *s3cr3t",
        "x: &a s3cr3t\nAPI_KEY: *a",
        "API_KEYS: [s3cr3t, {x: s3cr3t}]",
        "<<: {API_KEY: s3cr3t}",
        "? API_KEY\n: s3cr3t",
    ],
)
def test_a_secret_in_an_unusual_place_is_masked_as_well(text: str) -> None:
    shown = mask(text)
    if "*s3cr3t" not in text:  # that is a name, which others refer to
        assert "s3cr3t" not in shown
    assert saved(shown, text) == text


def test_no_text_takes_long() -> None:
    for text in (
        "key" * 100_000,
        "# " + "key " * 50_000,
        "#\n" * 50_000 + "# key: x\n" * 1000,
        "a: '" + "://:" * 50_000 + "'",
        "".join(
            f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'])}]\n" for i in range(99)
        ),
    ):
        assert saved(mask(text), text) == text


# --- whatever is written -----------------------------------------------------------------

odd = st.text(alphabet="abZ09 '\"\\{}[]:#,&*!|>%@`-=ä💥\t", max_size=6)


@st.composite
def secrets(draw: st.DrawFn, number: int) -> str:
    """Each number has its own, so that it is nowhere else."""
    return f"S{number}z{draw(odd)}{'q' * draw(st.integers(0, 2))}"


def is_plain(value: str) -> bool:
    try:
        return bool(yaml.safe_load(f"[{value}]") == [value] and yaml.safe_load(value) == value)
    except yaml.YAMLError:
        return False


@st.composite
def spelled(draw: st.DrawFn, value: str, depth: int, *, flow: bool = False) -> str:
    """A value in any of YAML's styles; `depth` is that of what it is in."""
    styles = ["single", "double", "escaped"]
    styles += ["plain"] * is_plain(value)
    if not flow and "\t" not in value and value == value.strip():
        styles += ["literal", "folded"]
    if not flow and is_plain(value) and " " not in value:
        styles += ["lines"]
    style = draw(st.sampled_from(styles))
    indent = "\n" + " " * (depth + 2)
    note = draw(st.sampled_from(["", "  # note"]))
    if style == "plain":
        return value
    if style == "single":
        return "'" + value.replace("'", "''") + "'"
    if style == "double":
        return json.dumps(value, ensure_ascii=False)
    if style == "escaped":
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    if style == "lines":
        return f"{value}{indent}{value}"
    mark = draw(st.sampled_from(["|", "|-", "|+"] if style == "literal" else [">", ">-"]))
    return f"{mark}{note}{indent}{value}{indent}{value}"


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and the secrets in it."""
    hidden: list[str] = []
    numbers = itertools.count(1)

    def secret() -> str:
        hidden.append(draw(secrets(next(numbers))))
        return hidden[-1]

    lines = ["program:", "  host: 127.0.0.1"]
    if draw(st.booleans()):
        password = f"S{next(numbers)}z"
        hidden.append(password)
        lines.append(f"  queue: redis://:{password}@cache:6379/0")
    lines.append("Local-Models:")
    for model in range(draw(st.integers(0, 3))):
        lines += [f"  M{model}:", "    S:"]
        command = [draw(spelled("serve", 8, flow=True)), "--port", '"1"']
        for _ in range(draw(st.integers(0, 2))):
            if draw(st.booleans()):
                command += ["--api-key", draw(spelled(secret(), 8, flow=True))]
            else:
                option = "--hf-token=" + secret()
                command.append(draw(spelled(option, 8, flow=True)))
        if draw(st.booleans()):
            lines.append(f"      command: [{', '.join(command)}]")
        else:
            lines.append("      command:")
            lines += [f"        - {argument}" for argument in command]
        lines.append("      env:")
        for variable in range(draw(st.integers(0, 3))):
            value = draw(spelled(secret(), 8))
            comment = draw(st.sampled_from(["", "  # A comment", "  # my key: "]))
            if comment.endswith(": "):
                comment += f"S{next(numbers)}z"
                hidden.append(comment.split()[-1])
            lines.append(f"        V{variable}_KEY: {value}" + comment * ("\n" not in value))
        if draw(st.booleans()):
            lines.append(f"        # OLD_TOKEN: {secret()}")
        lines.append("        Z: x")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return "".join(line.replace("\n", end) + end for line in lines), hidden


def heads(hidden: list[str]) -> list[str]:
    """What every one of these secrets begins with, and nothing else."""
    return [secret.partition("z")[0] + "z" for secret in hidden]


@given(configs())
def test_no_secret_is_shown_and_an_untouched_text_is_saved_as_it_was(
    config: tuple[str, list[str]],
) -> None:
    text, hidden = config
    shown = mask(text)
    assert not [head for head in heads(hidden) if head in shown]
    assert saved(shown, text) == text


@given(configs(), st.data())
def test_an_edit_elsewhere_changes_no_secret(
    config: tuple[str, list[str]], data: st.DataObject
) -> None:
    text, _ = config
    shown = mask(text)
    lines = shown.splitlines(keepends=True)
    places = [n for n, line in enumerate(lines) if line.startswith(("  M", "Local", "        Z"))]
    place = data.draw(st.sampled_from(places))
    line_end = "\r\n" if "\r\n" in text else "\n"
    new = " " * 8 + f"# new{line_end}"
    expected = text.splitlines(keepends=True)
    lines.insert(place, new)
    expected.insert(place, new)
    assert saved("".join(lines), text) == "".join(expected)


@given(configs(), st.data())
def test_a_cut_text_is_masked_too(config: tuple[str, list[str]], data: st.DataObject) -> None:
    """Such as one that is being written: what is no YAML any more is masked by its lines."""
    text, hidden = config
    cut = text[: data.draw(st.integers(0, len(text)))] + "\nx: ["
    shown = mask(cut)
    if "\\U" not in text:  # nobody reads those but a parser
        assert not [head for head in heads(hidden) if head in shown]


@pytest.mark.parametrize("before", ["  ", "  # "])
def test_whether_a_key_is_asked_for_is_no_secret(before: str) -> None:
    text = f"program:\n{before}require_key: true   # or else\n{before}port: 3\n"
    assert mask(text) == text
    assert mask("env: {REQUIRE_KEY_TOKEN: s3cr3t, KEY: s3cr3t}").count("hidden") == 2


REFERENCES = """\
program:
  queue: redis://:${REDIS_PASSWORD}@cache:6379/0
Local-Models:
  M:
    S:
      command: [x, --api-key, "${KEY}"]
      env:
        HF_TOKEN: ${HF_TOKEN}
        A_KEY: "${A_KEY}"   # <hidden 1>
        # B_TOKEN: ${B_TOKEN}
        # env: {C_TOKEN: "${C_TOKEN}"}
"""


def test_where_a_secret_is_named_only_it_stays_readable() -> None:
    assert mask(REFERENCES) == REFERENCES
    edited = REFERENCES.replace("HF_TOKEN}", "OTHER}")
    assert saved(edited, REFERENCES) == edited
    broken = "env:\n  HF_TOKEN: ${HF_TOKEN}\nx: [\n"
    assert mask(broken) == broken


@pytest.mark.parametrize(
    "value",
    [
        "Bearer s3cr3t ${TOKEN}",
        "${TOKEN}s3cr3t",
        "$${s3cr3t}",
        "${s3cr3t:-x}",
        "${s3cr3t",
        "{s3cr3t}",
    ],
)
def test_what_is_more_than_the_name_of_a_secret_is_masked(value: str) -> None:
    text = f"env:\n  API_KEY: '{value}'\n# API_KEY: {value}\n"
    assert "s3cr3t" not in mask(text)
    assert saved(mask(text), text) == text


def test_a_secret_is_not_put_where_it_would_pass_for_a_name() -> None:
    assert refused("API_KEY: ${<hidden 1>}\n", "API_KEY: s3cr3t\n") == [1]
    assert refused("queue: redis://:$<hidden 1>@h\n", "queue: redis://:{s3cr3t}@h\n") == [1]
