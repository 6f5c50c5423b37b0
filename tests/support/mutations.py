"""Recipes gone wrong in every way we could think of: good ones, mutated by hypothesis, as files and overrides."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st
from tiny import GOOD

FULL: dict[str, Any] = {
    **GOOD,
    "model": {
        "pretrained": "tiny",
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "call": {"negative_prompt": "grey"},
        "dtype": "float32",
        "lora": {"rank": 2, "alpha": 4.0, "targets": ["to_q", "to_v"]},
    },
    "rewards": [{"kind": "redness", "weight": 2.0, "contrast": 0.5}, {"kind": "redness", "cap": 1.0}],
    "measures": [{"kind": "brightness"}],
    "estimator": {"kind": "draft-lv"},
    "train": {"steps": 1, "batch_size": 1, "learning_rate": 4e-4, "betas": [0.9, 0.99], "seed": 3},
    "regularizers": {"kl": 0.1, "lora_norm": 0.0},
    "checkpoint": {"every": 1, "keep": 1},
    "evaluation": {"prompts": ["a boat"], "images_per_prompt": 1, "scales": [0.5]},
    "device": "cpu",
    "output": "runs/fuzz",
}

NUMBERS = [0, 1, 2, -1, 10**30, -(10**30), 2**63, 1e308, -0.0, 1e-320, float("nan"), float("inf"), -float("inf"), 0.5]
TEXTS = [
    *("", " ", "\n", "\x00", "\x1b[31m", "‮", "ß", "火", "a" * 5000, "../..", "/", "~", "null", "1e3", "=", "a=b"),
    *(
        "tiny",
        "redness",
        "brightness",
        "draft-k",
        "draft-lv",
        "draft",
        "refl",
        "cpu",
        "kind",
        "*a",
        "!!x",
        "{",
        "%",
        "org/model",
    ),
]
leaf = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.text(max_size=20),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.none(),
    st.dates(),
    st.binary(max_size=8),
)
junk = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(), st.none()), inner, max_size=4),
    ),
    max_leaves=12,
)

# What no dumped mapping can say: put in the place of a value.
RAW = [
    *(
        "!!python/object/apply:os.system [echo]",
        "!!int x",
        "!!bool maybe",
        "!!timestamp x",
        "!!binary '%'",
        "!!set {a}",
    ),
    *(
        "2001-99-99",
        "0x",
        "1_",
        "1:99:99",
        "*nowhere",
        "&a [*a]",
        "{<<: 3}",
        "? {a: b}",
        '"\\ud800"',
        "9" * 5000,
        "[" * 3000,
    ),
    *(
        "{a: 1, a: 2}",
        "{? [a]: b}",
        "!!omap [a: 1]",
        "!!float .",
        "%TAG",
        "\t",
        "---\na: b",
        "[" * 90 + "]" * 90,
        "!!null x",
    ),
    "[&a [x,x,x,x,x,x,x,x],"
    + ",".join(f"&{new} [" + ",".join([f"*{old}"] * 9) + "]" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
    + "]",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def _mutate(draw: Any, data: Any) -> None:
    path = draw(st.sampled_from(sorted(places(data), key=repr)))
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    last = path[-1]
    change = draw(st.sampled_from(["replace", "drop", "rename", "number", "wrap", "add", "swap", "text"]))
    if change == "drop":
        del parent[last]
    elif change == "rename" and isinstance(parent, dict):
        parent[draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=9), st.integers()))] = parent.pop(last)
    elif change == "number":
        parent[last] = draw(st.sampled_from(NUMBERS))
    elif change == "text":
        parent[last] = draw(st.sampled_from(TEXTS))
    elif change == "wrap":
        parent[last] = draw(
            st.sampled_from([[parent[last]], {"a": parent[last]}, {"kind": parent[last]}, [parent[last]] * 3])
        )
    elif change == "swap":
        other = draw(st.sampled_from(sorted(places(FULL), key=repr)))
        found: Any = FULL
        for key in other:
            found = found[key]
        parent[last] = copy.deepcopy(found)
    elif change == "add" and isinstance(parent, dict):
        parent[draw(st.text(max_size=9))] = draw(junk)
    else:
        parent[last] = draw(junk)


@st.composite
def recipes(draw: Any) -> tuple[str, list[str]]:
    """A recipe's text and some overrides: a good one with a few things changed, perhaps no YAML at all."""
    data = copy.deepcopy(draw(st.sampled_from([GOOD, FULL])))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            _mutate(draw, data)
    text = _text(draw, data)
    overrides = draw(st.lists(_override(), max_size=2)) if draw(st.integers(0, 2)) == 0 else []
    return text, overrides


def _text(draw: Any, data: Any) -> str:
    try:
        text = yaml.safe_dump(data, allow_unicode=draw(st.booleans()))
    except yaml.YAMLError:
        text = json.dumps(data, default=str)
    change = draw(st.integers(0, 11))
    lines = text.splitlines(keepends=True) or [""]
    at = draw(st.integers(0, len(lines) - 1))
    if change == 0:
        lines[at] = lines[at].partition(":")[0] + ": " + draw(st.sampled_from(RAW)) + "\n"
    elif change == 1:
        lines.insert(at, lines[at])
    elif change == 2:
        cut = draw(st.integers(0, len(text)))
        return text[:cut] + draw(st.text(max_size=3)) + text[cut:]
    return "".join(lines)


@st.composite
def _override(draw: Any) -> str:
    path = draw(st.sampled_from([".".join(map(str, path)) for path in places(FULL)]))
    path = draw(
        st.sampled_from([path, path + ".x", path + ".0", path + ".-1", path + ".²", path + "." + "9" * 5000, ""])
    )
    value = draw(
        st.one_of(
            st.sampled_from(RAW),
            st.sampled_from(TEXTS),
            st.sampled_from(NUMBERS).map(str),
            st.text(max_size=12),
            leaf.map(lambda value: json.dumps(value, default=str)),
        )
    )
    return draw(
        st.sampled_from(
            [f"{path}={value}", f"{path}={value}", f"{path}{value}", f"={value}", ".".join("a" * 2000) + "=1"]
        )
    )
