"""One model, three rewards: the reward's name is the condition, beside a LoRA for each reward alone.

    python benchmarks/conditions.py            # a quarter of an hour of one core; writes docs/how-to/users.md
    python benchmarks/conditions.py --print    # writes no page and no image

The one model has attention to a "user" who is a reward: a unit vector for each name. A prompt's row names the reward
that its image is scored by, or a mixture, `small:0.5,warm:0.5`. Both ways see equally many images of each reward, in
four unguided steps, and are judged so on new prompts. What a reward gains is read where the alignment has fallen to
the floor, or at the end. Errors are over prompts.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from paired import standard_error
from tables import markdown, publish
from users import measures, quiet

from draft_core import (
    CallColumns,
    DifferentiableSampler,
    Objective,
    PromptRow,
    Trainer,
    TrainSettings,
    evaluate,
    load_catalog,
    load_pipeline,
    load_reward,
)
from draft_core.adapters.adapter import Adapter
from draft_core.adapters.lora_adapter import Lora
from draft_core.adapters.user_embeddings import UserEmbeddings
from draft_core.adapters.users import UserAdapter, UserArgument
from draft_core.learners.direct import DirectLearner
from draft_core.prompt_rows import Column
from draft_core.recipe.resolve import resolve_prompts
from draft_core.registry.methods import DraftK
from draft_core.reporting.image_grid import draw_grid
from draft_core.rewards.protocol import FrozenModule

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "users.md"
IMAGE = ROOT / "docs" / "images" / "conditions.png"
STEPS, GUIDANCE = 4, 1.0
NAMES = ("small", "warm", "liked")
EACH = 2  # images of each reward in an update
UPDATES, EVERY, HELD_OUT = 120, 10, 20
RATES = {"users": 2e-4, "lora": 3e-4}
FLOOR = 0.95  # of the base model's alignment
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = 6


def rewards() -> dict[str, Callable[..., torch.Tensor]]:
    """Few bytes, by the JPEG reward; warm colours of what is drawn; what people pick, by emoji-preference."""
    return {
        "small": load_reward("jpeg"),
        "warm": lambda images, prompts: measures(images)[:, 0],
        "liked": load_reward("emoji-preference"),
    }


# A unit vector for each name: what a row's mixture is shown to the model as, and the weights of its rewards.
SHOWN_AS = UserEmbeddings(dict(zip(NAMES, torch.eye(len(NAMES)), strict=True)))


class Named(FrozenModule):
    """The score by the reward that a prompt's row names, in spreads of that reward among the base model's images."""

    def __init__(self, named: Mapping[str, Callable[..., torch.Tensor]], spreads: Mapping[str, float]) -> None:
        super().__init__()
        self.named, self.spreads = dict(named), dict(spreads)

    def forward(self, images: torch.Tensor, prompts: Sequence[str], columns: Mapping[str, Any]) -> torch.Tensor:
        weights = torch.stack([SHOWN_AS.of(text, where="reward") for text in columns["reward"]])
        total = images.new_zeros(len(images))
        for (name, reward), of_rows in zip(self.named.items(), weights.T, strict=True):
            asked = of_rows.nonzero().flatten()
            if len(asked):
                scores = reward(images[asked], [prompts[place] for place in asked]) / self.spreads[name]
                total = total.index_add(0, asked, of_rows[asked] * scores)
        return total


def one_model(pipe: Any) -> tuple[Adapter, CallColumns]:
    """Attention to the rewards' names."""
    return UserAdapter(pipe, SHOWN_AS, column="reward"), CallColumns(computed=UserArgument(pipe, SHOWN_AS, "reward"))


class Judge:
    """Means over new prompts, drawn as in training with noise that is the same for all."""

    def __init__(self, named: Mapping[str, Callable[..., torch.Tensor]]) -> None:
        self.prompts = resolve_prompts("emoji-heldout", load_catalog())[:HELD_OUT]
        self.scorers: dict[str, Callable[..., torch.Tensor]] = {
            **named,
            **{kind: load_reward(kind) for kind in ("emoji-clip", "emoji-judge")},
        }

    def images(self, sampler: DifferentiableSampler, named: str) -> torch.Tensor:
        """(P, 3, H, W)."""
        rows = [PromptRow(prompt, {"reward": named}) for prompt in self.prompts]
        return evaluate(sampler, Objective({}), rows, [0], batch_size=10).images

    def scores(self, images: torch.Tensor) -> dict[str, list[float]]:
        """By scorer, of each prompt."""
        with torch.no_grad():
            return {name: scorer(images, list(self.prompts)).tolist() for name, scorer in self.scorers.items()}


def trained(folder: Path, way: str, of: Sequence[str], reward: Named, judge: Judge) -> Any:
    """Trains with the rewards of these names, and judges it on the way; what is there already is read."""
    file = folder / f"{way}-{'-'.join(of)}.jsonl"
    pipe = quiet(load_pipeline("emoji"))
    torch.manual_seed(0)
    adapter, columns = one_model(pipe) if way == "users" else (Lora(pipe, rank=8), CallColumns())
    adapter.attach()
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE, columns=columns)
    saved = folder / f"{file.stem}.pt"
    if saved.is_file():
        adapter.load_state_dict(torch.load(saved, weights_only=True))
        return sampler, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [PromptRow(text, {"reward": name}) for text in resolve_prompts("emoji-train", load_catalog()) for name in of]
    trainer = Trainer(
        sampler,
        Objective({"named": reward}, columns={"named": {"reward": Column("reward", "text")}}),
        DirectLearner(DraftK(k=1)),
        rows,
        TrainSettings(steps=UPDATES, batch_size=EACH * len(of), learning_rate=RATES[way], seed=1),
        adapter=adapter,
        device="cpu",
        columns={"reward": tuple(row.columns["reward"] for row in rows)},
    )
    lines = [{"update": 0, **{name: judge.scores(judge.images(sampler, name)) for name in of}}]
    for report in trainer:
        if report.update % EVERY == 0:
            lines.append({"update": report.update, **{name: judge.scores(judge.images(sampler, name)) for name in of}})
            print(f"{file.stem} {report.update}/{UPDATES} reward {report.reward:+.3f}", flush=True)
    torch.save(adapter.state_dict(), saved)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return sampler, lines


def at_floor(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], float, bool]:
    """What each prompt gains, where the alignment has fallen to the floor or at the end; the alignment; which it is."""
    base = lines[0][name]
    kept = [fmean(line[name]["emoji-clip"]) / fmean(base["emoji-clip"]) for line in lines]
    gained = [[new - old for new, old in zip(line[name][name], base[name], strict=True)] for line in lines]
    for place, (before, after) in enumerate(itertools.pairwise(kept)):
        if after < FLOOR:
            part = (before - FLOOR) / (before - after)
            pairs = zip(gained[place], gained[place + 1], strict=True)
            return [one + part * (other - one) for one, other in pairs], FLOOR, True
    return gained[-1], kept[-1], False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/conditions"), help="where the results lie")
    parser.add_argument("--print", action="store_true", help="write no page and no image")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.runs.mkdir(parents=True, exist_ok=True)
    named = rewards()
    judge = Judge(named)
    pipe = quiet(load_pipeline("emoji"))
    plain = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    base = judge.images(plain, "")
    of_base = judge.scores(base)
    spreads = {name: float(torch.tensor(of_base[name]).std()) for name in NAMES}

    reward = Named(named, spreads)

    together, lines = trained(given.runs, "users", NAMES, reward, judge)
    shown = {name: judge.images(together, name) for name in NAMES}
    table = []
    for name in NAMES:
        _, own = trained(given.runs, "lora", (name,), reward, judge)
        found = [at_floor(of, name) for of in (own, lines)]
        cells = []
        for gains, kept, is_floor in found:
            unit = [gain / spreads[name] for gain in gains]
            at = "at the floor" if is_floor else f"at the end, {100 * kept:.0f} %"
            cells.append(f"{fmean(unit):+.2f} ± {standard_error(unit):.2f} ({at})")
        share = fmean(found[1][0]) / fmean(found[0][0])
        table.append([f"`{name}`", *cells, f"{100 * share:.0f} %"])

    mixed = []
    for one, other in itertools.combinations(NAMES, 2):
        values = [judge.scores(judge.images(together, f"{one}:{1 - s},{other}:{s}")) for s in SHARES]
        for name, wanted in ((one, -1), (other, 1)):
            means = [fmean(scores[name]) / spreads[name] for scores in values]
            steps = sum(wanted * (after - before) > 0 for before, after in itertools.pairwise(means))
            cells = [f"{mean - fmean(of_base[name]) / spreads[name]:+.2f}" for mean in means]
            mixed.append([f"`{one}` to `{other}`, by `{name}`", *cells, f"{steps} of {len(SHARES) - 1}"])
    publish(
        {
            "conditions": markdown(["reward", "a LoRA of its own", "the one model", "share"], table),
            "mixtures": markdown(["mixture", *map(str, SHARES), "steps in order"], mixed),
        },
        None if given.print else PAGE,
    )
    if not given.print:
        rows = [
            (prompt, [base[place], *(images[place] for images in shown.values())])
            for place, prompt in list(enumerate(judge.prompts))[:SHOWN]
        ]
        draw_grid(rows, headings=["base model", *NAMES]).save(IMAGE)


if __name__ == "__main__":
    main()
