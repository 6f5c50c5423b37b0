"""What a score may depend on, three checks of the contract: the image and its prompt, and nothing else."""

from __future__ import annotations

import torch

from draft_core.testing.subject import Subject, demand

SAME = 1e-4  # of the scores' scale: what is left of float32 when a batch is cut otherwise


def deterministic(subject: Subject) -> None:
    """The same images score the same, in every bit, whatever torch's random state is."""
    images = subject.images()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = subject.score(images)
        torch.manual_seed(2)
        second = subject.score(images)
    demand(torch.equal(first, second), f"it scored the same images {first.tolist()} and then {second.tolist()}")


def no_leak_between_images(subject: Subject) -> None:
    """An image's score does not depend on the other images of its batch, nor on their order.

    In a group, the images of one prompt, it depends on the others, and not on their order.
    """
    images = subject.images()
    together = subject.score(images)
    if subject.compares:
        turned = subject.score(images[[2, 0, 1]])[[1, 2, 0]]
        demand(_close(together, turned, SAME), "its scores change with the order of the group")
        others = torch.cat([images[:1], images[1:].flip(-1)])
        same = bool(subject.score(others)[0] == together[0])
        demand(not same, "its spec says that its scope is the group, but a score does not change with the others")
        return
    alone = torch.cat([subject.score(images[i : i + 1], subject.prompts[i : i + 1]) for i in range(3)])
    demand(_close(together, alone, SAME), f"in a batch it scores {together.tolist()}, alone {alone.tolist()}")
    turned = subject.score(images.flip(0), subject.prompts[::-1]).flip(0)
    demand(_close(together, turned, SAME), "its scores change with the order of the batch")
    one = subject.prompts[:1]
    together = subject.score(images, one * 3)
    alone = torch.cat([subject.score(images[i : i + 1], one) for i in range(3)])
    demand(
        _close(together, alone, SAME),
        f"in a batch of one prompt it scores {together.tolist()}, alone {alone.tolist()}",
    )


def remembers_nothing(subject: Subject) -> None:
    """A call leaves no trace: the same images score the same after others, and so they do under autograd.

    A resumed run starts with a reward that has seen nothing, and must score like the one that was interrupted.
    """
    images = subject.images()
    one = subject.prompts[:1] * 3
    first = subject.score(images)
    first_recorded, kept = _recorded(subject, images, subject.prompts), _held(subject)
    for _ in range(2):
        _recorded(subject, images.flip(0, -1), one)
        subject.score(images.flip(-1), one)
    second_recorded, second = _recorded(subject, images, subject.prompts), subject.score(images)
    for before, after in ((first, second), (first_recorded, second_recorded)):
        demand(
            torch.equal(before, after),
            f"it scores the same images {before.tolist()}, and after further calls {after.tolist()}: it remembers",
        )
    now = _held(subject)
    changed = [name for name in now if name not in kept or not torch.equal(kept[name], now[name])]
    demand(not changed, f"calls change what it holds, first {(changed or [''])[0]}: it remembers")


def _recorded(subject: Subject, images: torch.Tensor, prompts: tuple[str, ...]) -> torch.Tensor:
    """Its scores where autograd records, as in training; detached."""
    with torch.enable_grad():
        scores: torch.Tensor = subject.called(images.clone().requires_grad_(), prompts)
    return scores.detach()


def _held(subject: Subject) -> dict[str, torch.Tensor]:
    """Its parameters and buffers by name, also those that no checkpoint would hold."""
    tensors = [*subject.reward.named_parameters(), *subject.reward.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def _close(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> bool:
    return bool((first - second).abs().max() <= tolerance * first.abs().max().clamp_min(1e-3))
