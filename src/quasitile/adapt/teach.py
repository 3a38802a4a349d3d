"""The gradient steps of one section, and the losses in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quasitile.adapt.curriculum import Lesson, Record
from quasitile.adapt.examples import IGNORED, Expected, answer_loss, answer_tokens
from quasitile.adapt.reader import Reader, draw
from quasitile.align.losses import language_model_nats, logit_kl
from quasitile.align.steps import half_precision, not_finite
from quasitile.runtime import held_weights

LOSSES: tuple[str, ...] = ("loss_nats", "text_nats", "replay_nats", "guidance_nats")


def teach(
    reader: Reader,
    lesson: Lesson,
    earlier: list[Record],
    num_steps: int,
    own: list[Record] | None = None,
) -> dict[str, float]:
    """The gradient steps of one section.

    Args:
        reader: The model and what it needs.
        lesson: The section.
        earlier: Questions of sections read before.
        num_steps: How many.
        own: The questions to teach, instead of the section's.

    Returns:
        Mean losses over the steps, and the number of `tokens` that went through the model.

    Raises:
        InputError: The loss is not finite.
    """
    settings, sums, num_tokens = reader.settings, dict.fromkeys(LOSSES, 0.0), 0
    weights = (1.0, settings.text_weight, settings.replay_weight, settings.guidance_weight)
    for _ in range(num_steps):
        records = draw(own or lesson.records, settings.num_questions, reader.rng)
        records += draw(earlier, settings.num_revisited, reader.rng)
        with half_precision(reader.model), held_weights(reader.model):
            losses, counted = step_losses(reader, records, lesson, reader.text(lesson, settings.text_tokens))
        parts = {name: weight * losses[name] for name, weight in zip(LOSSES, weights, strict=True)}
        replay = parts.pop("replay_nats")
        taught = sum(parts.values(), torch.zeros(()))
        total = taught + replay
        if not torch.isfinite(total):
            place = f"{lesson.document}, section {lesson.section}"
            raise not_finite(total, place, "adapt", [[m["content"] for m in record["messages"]] for record in records])
        reader.optimizer.zero_grad(set_to_none=True)
        if total.requires_grad:
            backward(reader, taught, replay)
            reader.optimizer.step()
        sums = {name: value + losses[name].item() / num_steps for name, value in sums.items()}
        num_tokens += counted
    return {**sums, "tokens": num_tokens}


def backward(reader: Reader, taught: Tensor, replay: Tensor) -> None:
    """Gradients of the blocks that learn; where they are still to be chosen, by the gradient of what is taught alone."""
    if reader.chosen is not None or not taught.requires_grad:
        (taught + replay).backward()
        return
    taught.backward(retain_graph=replay.requires_grad)  # both are products of the same weights
    reader.choose_by_gradient()
    if replay.requires_grad:
        replay.backward()
        reader.let_learn(reader.chosen or [])  # the graph still knows the others


def step_losses(reader: Reader, records: list[Record], lesson: Lesson, text: Tensor) -> tuple[dict[str, Tensor], int]:
    """Losses of one step, each a mean over its tokens: answers, the section's text, replay, guidance."""
    settings, model = reader.settings, reader.model
    losses = dict.fromkeys(LOSSES, torch.zeros(()))
    answers, counted = reader.answers(records)
    losses["loss_nats"] = answer_loss(answers)
    if settings.guidance_weight:
        losses["guidance_nats"] = guidance(reader, lesson, answers)
    if settings.text_weight:
        losses["text_nats"] = language_model_nats(model(text, use_cache=False).logits, text)
        counted += text.numel()
    if settings.replay_weight and settings.replay_windows:
        window = reader.replay[[reader.rng.randrange(len(reader.replay)) for _ in range(settings.replay_windows)]]
        logits = model(window, use_cache=False).logits
        if reader.teacher is None:
            losses["replay_nats"] = language_model_nats(logits, window)
        else:
            with torch.inference_mode():
                target = reader.teacher(window, use_cache=False).logits
            losses["replay_nats"] = logit_kl(logits, target)
        counted += window.numel()
    return losses, counted


def guidance(reader: Reader, lesson: Lesson, answers: list[Expected]) -> Tensor:
    """KL between the student's answers from memory and those of the teacher, which has the section before it.

    Only questions of this section count; a mean over their answers' tokens. Zero where there is none.
    """
    context = context_of(reader.tokenizer, lesson, reader.settings.guidance_tokens)
    ours, theirs = [], []
    for record, logits_TV, _ in answers:
        if (record["metadata"]["document"], record["metadata"]["section"]) != (lesson.document, lesson.section):
            continue
        ids, wanted = answer_tokens(reader.tokenizer, record, reader.settings.trace)
        room = reader.model.config.max_position_embeddings - len(ids)
        if room < 1:
            continue
        seen = torch.tensor([*context[-room:], *ids])[None]
        with torch.inference_mode():
            target = reader.teacher(seen, use_cache=False).logits[0, -len(ids) :]
        places = [place - 1 for place, label in enumerate(wanted) if label != IGNORED]  # the token before predicts it
        ours.append(logits_TV[places])
        theirs.append(target[places])
    return logit_kl(torch.cat(ours), torch.cat(theirs)) if ours else torch.zeros(())


def context_of(tokenizer: Any, lesson: Lesson, limit: int) -> list[int]:
    """The first tokens of a section, as they stand before a question (open book)."""
    return tokenizer(f"{lesson.text}\n\n", add_special_tokens=False)["input_ids"][:limit]
