"""The gradient steps of one section, and the losses in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quasitile.adapt.curriculum import Lesson, Record
from quasitile.adapt.examples import IGNORED, Expected, Row, answer_loss, num_wanted, unlabelled
from quasitile.adapt.reader import Reader, draw
from quasitile.align.losses import language_model_nats, logit_kl
from quasitile.align.steps import not_finite
from quasitile.runtime import gathered_gradients, inference_mode

LOSSES: tuple[str, ...] = ("loss_nats", "text_nats", "replay_nats", "guidance_nats")
Pass = tuple[dict[str, Tensor], int]  # its part of each loss of a step, and its tokens


def teach(
    reader: Reader,
    lesson: Lesson,
    earlier: list[Record],
    num_steps: int,
    own: list[Record] | None = None,
) -> dict[str, Any]:
    """The gradient steps of one section.

    Args:
        reader: The model and what it needs.
        lesson: The section.
        earlier: Questions of sections read before.
        num_steps: How many.
        own: The questions to teach, instead of the section's.

    Returns:
        Mean losses over the steps, `each_loss_nats` of the answers, step by step, and the number of `tokens` that went
        through the model.

    Raises:
        InputError: The loss is not finite.
    """
    settings = reader.settings
    means, each = dict.fromkeys((*LOSSES, "tokens"), 0.0), []
    reader.model.train(settings.checkpointing)  # which Transformers does in training mode alone
    for _ in range(num_steps):
        records = draw(own or lesson.records, settings.num_questions, reader.rng)
        records += draw(earlier, settings.num_revisited, reader.rng)
        taught = taught_passes(reader, records, lesson, reader.text(lesson, settings.text_tokens))
        replayed = replayed_passes(reader, reader.draw_replay())
        reader.optimizer.zero_grad(set_to_none=True)
        sums = gradients(reader, taught, replayed)
        total = weigh(reader, sums)
        if not torch.isfinite(total):
            place = f"{lesson.document}, section {lesson.section}"
            raise not_finite(total, place, "adapt", [[m["content"] for m in record["messages"]] for record in records])
        reader.optimizer.step()
        for name in LOSSES:
            means[name] += sums[name].item() / num_steps
        means["tokens"] += sums["tokens"].item()
        each.append(sums["loss_nats"].item())
    reader.model.eval()
    return {**means, "each_loss_nats": each}


def weigh(reader: Reader, losses: dict[str, Tensor]) -> Tensor:
    """The weighted sum of the losses that are there."""
    settings = reader.settings
    weights = (1.0, settings.text_weight, reader.replay_weight, settings.guidance_weight)
    found = [weight * losses[name] for name, weight in zip(LOSSES, weights, strict=True) if name in losses]
    return torch.stack(found).sum()


def gradients(reader: Reader, taught: Iterator[Pass], replayed: Iterator[Pass]) -> dict[str, Tensor]:
    """Gradients of the blocks that learn; where they are still to be chosen, by the gradient of what is taught alone.

    Args:
        reader: The model; nothing has a gradient yet.
        taught: Passes over what is taught. Each has its own backward pass, so that only one is in memory.
        replayed: Passes over replayed text.

    Returns:
        Every loss and the number of `tokens`, of all passes and processes.
    """
    sums = {name: torch.zeros((), device=reader.device) for name in (*LOSSES, "tokens")}

    share = reader.processes.num if reader.shards is not None else 1  # gradients of shards are means over processes

    def learn(passes: Iterator[Pass]) -> None:
        for losses, num_tokens in passes:
            loss = weigh(reader, losses)
            if loss.requires_grad:
                (loss * share).backward()
            for name, value in losses.items():
                sums[name] += value.detach()
            sums["tokens"] += num_tokens

    with gathered_gradients(reader.model) as hand_on:
        learn(taught)
        of_taught: list[tuple[Tensor, Tensor]] = []
        if reader.chosen is None:
            hand_on()
            reader.add_gradients()
            reader.choose_by_gradient()
            of_taught = [(values, values.grad) for values in reader.learning() if values.grad is not None]
            reader.optimizer.zero_grad(set_to_none=True)
        learn(replayed)
        hand_on()
        reader.let_learn(reader.chosen or [])  # the weights were computed while all blocks learned
        reader.add_gradients()
        for values, grad in of_taught:
            values.grad = grad if values.grad is None else values.grad + grad
    return {name: reader.processes.sum(value) for name, value in sums.items()}


def taught_passes(reader: Reader, records: list[Record], lesson: Lesson, text: Tensor) -> Iterator[Pass]:
    """What a step teaches: answers, guidance, the section's text; each loss adds up to a mean over all of its tokens."""
    settings, processes = reader.settings, reader.processes
    rows = reader.rows(records)
    num_answers = sum(num_wanted(labels) for _, labels in rows)
    places: list[list[int]] = [[] for _ in rows]
    if settings.guidance_weight:
        places = [guided(reader, record, row, lesson) for record, row in zip(records, rows, strict=True)]
    num_guided = sum(map(len, places))
    for part in reader.parts(list(range(len(records)))):
        for chosen in reader.like_lengths([rows[index] for index in part], processes.num):
            # Those that the teacher guides come first, so that processes have as many, and the first answers are theirs.
            batch = sorted((part[index] for index in chosen), key=lambda index: not places[index])
            own, num = processes.share(batch)
            asked = [rows[index] for index in own[:num]] + [unlabelled(rows[index]) for index in own[num:]]
            with reader.half_precision():
                answers = reader.expect([records[index] for index in own], asked)
                losses = {"loss_nats": answer_loss(answers, num_answers)}
                if any(places[index] for index in batch):
                    seen, num_seen = processes.share([index for index in batch if places[index]])
                    targets = [guide(reader, lesson, rows[index][0]) for index in seen][:num_seen]
                    found = guidance(answers, targets, [places[index] for index in seen])
                    losses["guidance_nats"] = found / num_guided
            yield losses, sum(len(rows[index][0]) for index in own[:num])
    together = reader.shards is not None
    if settings.text_weight and (processes.first or together):
        with reader.half_precision():
            nats = language_model_nats(reader.model(text, use_cache=False).logits, text)
        yield {"text_nats": nats / processes.num if together else nats}, text.numel() if processes.first else 0


def replayed_passes(reader: Reader, windows: Tensor) -> Iterator[Pass]:
    """General text that keeps the model close to the original, or is learned where that is not given; windows (B, T)."""
    for part in reader.parts(list(range(len(windows)))):
        rows, num = reader.processes.share(part)
        own, num_kept = windows[rows], max(1, num)
        with reader.half_precision():
            logits = reader.model(own, use_cache=False).logits
            if reader.teacher is None:
                nats = language_model_nats(logits[:num_kept], own[:num_kept])
            else:
                with inference_mode(reader.model):
                    target = reader.teacher(own, use_cache=False).logits
                nats = logit_kl(logits[:num_kept], target[:num_kept])
        yield {"replay_nats": nats * (num / len(windows))}, own[:num].numel()


def guided(reader: Reader, record: Record, row: Row, lesson: Lesson) -> list[int]:
    """Places whose predictions follow the teacher's; none in questions of other sections or without room for a section."""
    about = record["metadata"]["document"], record["metadata"]["section"]
    if about != (lesson.document, lesson.section) or len(row[0]) >= reader.limit:
        return []
    return [place - 1 for place, label in enumerate(row[1]) if label != IGNORED]  # the token before predicts it


def guide(reader: Reader, lesson: Lesson, ids: list[int]) -> Tensor:
    """What the teacher expects of a question (T tokens) with as much of the section before it as it can see, (T, V)."""
    context = context_of(reader.tokenizer, lesson, reader.settings.guidance_tokens)
    seen = torch.tensor([*context[len(ids) - reader.limit :], *ids])[None]
    with inference_mode(reader.model):
        return reader.teacher(seen, use_cache=False).logits[0, -len(ids) :]


def guidance(answers: list[Expected], targets: list[Tensor], places: list[list[int]]) -> Tensor:
    """KL between the student's answers from memory and those of the teacher, which has the section before it.

    Args:
        answers: What the student expects, those with a target first.
        targets: What the teacher expects, (T, V) each.
        places: That count in each.

    Returns:
        Nats, summed over places.
    """
    ours = [answer.logits[chosen] for answer, _, chosen in zip(answers, targets, places, strict=False)]
    theirs = [target[chosen] for target, chosen in zip(targets, places, strict=False)]
    return logit_kl(torch.cat(ours), torch.cat(theirs)) * sum(map(len, ours)) if ours else torch.zeros(())


def context_of(tokenizer: Any, lesson: Lesson, limit: int) -> list[int]:
    """The first tokens of a section, as they stand before a question (open book)."""
    return tokenizer(f"{lesson.text}\n\n", add_special_tokens=False)["input_ids"][:limit]
