"""Recipes gone wrong in every way we could think of: good ones, mutated by hypothesis, as files and overrides.

And recipes whose every field has a value that a recipe may hold, up to the edges: what is accepted must run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from ruamel.yaml.error import YAMLError

from draft_core.recipe.yaml_text import dump_yaml
from tests.support.tiny import GOOD

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
    "metrics": [{"kind": "brightness"}],
    "method": {"kind": "draft-lv"},
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
        text = dump_yaml(data)
    except YAMLError:
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


# Field -> values that are understood, the common and the outermost: what a run does with each is seen in a run.
VALUES: dict[str, list[Any]] = {
    "model.num_inference_steps": [1, 2, 4],
    "model.guidance_scale": [0, 1.0, 3.0, 1e308],
    "model.call": [
        *({}, {"negative_prompt": "grey"}, {"height": 8}, {"height": 16, "width": 32}, {"eta": 1.0}),
        *({"num_images_per_prompt": 2}, {"height": 7}, {"height": "tall"}, {"negative_prompt": 3}, {"prompt": "a"}),
        *({"output_type": "pil"}, {"clip_skip": 1}, {"clip_skip": 9}, {"timesteps": [500, 1]}, {"latents": [0.0]}),
        *({"negative_prompt": ["a", "b"]}, {"guidance_rescale": 0.7}, {"num_images_per_prompt": 0}, {"generator": 1}),
    ],
    "model.dtype": ["float32", "bfloat16", "float16"],
    "model.gradient_checkpointing": [True],
    "model.decode": ["checkpointed", "sliced", "tiles"],
    "model.tiled_decode": [True, {"tile_sample_min_height": 128}],
    "model.remember_prompts": [True],
    "model.lora.rank": [1, 3, 64],
    "model.lora.alpha": [1e-3, 8.0, 1e308],
    "model.lora.targets": [["to_q"], ["to_out.0", "conv1"], ["conv_in"], ["nothing"], [""], ["norm"], ["."], ["unet"]],
    "prompts": [["a cat"], ["", "x"], ["\u706b" * 300], ["a" * 5000], ["\x00"], ["<b>&amp;</b>", "$x_1$", "%s {0}"]],
    "method": [
        *({"kind": "draft"}, {"kind": "draft-k", "k": 2}, {"kind": "refl", "last": 2}, {"kind": "alignprop"}),
        *({"kind": "drtune", "k": 1, "last": 2}, {"kind": "flowbp-sparse", "k": 2}, {"kind": "steps", "steps": [0, 0]}),
        *({"kind": "draft-lv", "resamples": 0}, {"kind": "draft-lv", "resamples": 2, "batched": True}),
        *({"kind": "prefix-reuse", "updates": 3}, {"kind": "prefix-reuse", "updates": 3, "max_drift": 1e-9}),
    ],
    "rewards.0.weight": [0, -1, 1e-320, 1e308],
    "rewards.0.contrast": [1e-320, 1e308],
    "rewards.0.cap": [-1e308, 0, 1e308],
    "rewards.0.device": ["cpu", "cuda:7", "mps"],
    "rewards": [[{"kind": "redness"}, {"kind": "redness", "weight": -1}]],
    "metrics": [[], [{"kind": "brightness"}], [{"kind": "redness"}] * 3],
    "train.steps": [1, 3],
    "train.batch_size": [1, 3],
    "train.gradient_accumulation_steps": [2],
    "train.learning_rate": [1e-320, 10.0, 1e308],
    "train.warmup_steps": [1, 10**9],
    "train.cooldown_steps": [1, 10**9],
    "train.betas": [[0, 0]],
    "train.weight_decay": [0, 1e308],
    "train.max_grad_norm": [1e-320, 1e308],
    "train.mixed_precision": ["bf16", "fp16"],
    "train.sharding": ["full"],
    "train.seed": [0, 2**62],
    "train.normalize": ["scale", "gradient"],
    "train.frames": [{"count": 2}],
    "train.max_skipped": [0, 10**9],
    "regularizers.kl": [0.1, 1e308],
    "regularizers.kl_anchor": [{"ema": 0.5}],
    "regularizers.kl_gate": [["brightness"]],
    "regularizers.lora_norm": [0.1, 1e308],
    "checkpoint.every": [1, 10**9],
    "checkpoint.keep": [1, 10**9],
    "evaluation": [
        *({"prompts": ["a boat"]}, {"prompts": "tiny-heldout", "count": 1, "images_per_prompt": 1, "every": 1}),
        *({"prompts": ["a boat", "a boat"], "images_per_prompt": 2}, {"prompts": ["x"], "seed": 2**62}),
        *({"prompts": ["y"], "tolerance": 1e-320}, {"prompts": ["y"], "tolerance": 1e308, "on_collapse": "warn"}),
        *({"prompts": ["z"], "scales": []}, {"prompts": ["z"], "scales": [-1, 0, 1e-9, 1e308, 0.5, 0.5]}),
    ],
    "trackers": [{"tensorboard": None}, {"tensorboard": {}}, {}],
    "processes": [2],
    "output": ["a b", "\u706b", "x/y/z", "", ".", "..", "/", "a" * 300, "a\x00b", "~/x", "#", "-f"],
}


@st.composite
def runnable(draw: Any) -> tuple[str, list[str]]:
    """A good recipe's text, and overrides that say what a recipe may say."""
    text = dump_yaml(draw(st.sampled_from([GOOD, FULL])))
    fields = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True))
    # the whole comes before its parts
    chosen = [f"{field}={json.dumps(draw(st.sampled_from(VALUES[field])))}" for field in sorted(fields)]
    return text, chosen
