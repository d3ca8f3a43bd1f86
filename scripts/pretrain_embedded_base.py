"""Pretrain the embedded base: a small Llama language model on Python's own documentation.

    python scripts/pretrain_embedded_base.py --work runs/base [--out plaudit/embedded/base]

Reads the pretraining part of the shipped corpus alone. Trains a byte-level BPE tokenizer, then the
model, on questions and answers rendered by the chat template that comparisons use, and on plain
text. The validation loss is that of answers of the corpus's training part, which the model never
reads; the best checkpoint by it is kept. Goes on from the last checkpoint in ``--work`` if there
is one. ``log.jsonl`` there holds one line per logging or validation step.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit.data.sources.documentation import Documentation, answers, questions, read_documentation
from plaudit.embedded import base_path
from plaudit.storage.atomic import write_atomically

VOCABULARY = 4096
LONGEST_EXAMPLE = 256
PLAIN_CHUNK = 900
"""Characters of a plain-text example, about 220 tokens."""

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('This template knows the roles system, user and assistant only.') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides the result, beside the corpus and the library versions."""

    work: Path
    out: Path
    steps: int
    stop_at: int | None
    tokens_per_step: int
    muon_lr: float
    adam_lr: float
    weight_decay: float
    warmup_steps: int
    validate_every: int
    patience: int
    seed: int
    save_minutes: float


def main() -> None:
    """Tokenizer, training and the base folder, each skipped if it is there already."""
    settings = parse()
    settings.work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(settings.work / "tokenizer")
    train(settings, tokenizer)
    write_base(settings, tokenizer)


def parse() -> Settings:
    """Settings from the command line; docs/concepts/embedded-base.md has the shipped base's."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=base_path())
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--stop-at", type=int, help="stop after this step, to go on later")
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup-steps", type=int, default=40)
    parser.add_argument("--validate-every", type=int, default=100)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--save-minutes", type=float, default=3.0)
    return Settings(**vars(parser.parse_args()))


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the pretraining part; numbers are spelt digit by digit."""
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)  # type: ignore[no-any-return]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [BOS, END, PAD, *(f"<|{role}|>" for role in ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    records = [item for item in read_documentation() if item.part == "pretraining"]
    # The name stands in every question, so it counts as often as the text.
    tokenizer.train_from_iterator(
        (f"`{item.name}`\n{item.text}" for item in records), trainer=trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        model_max_length=2048,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    return wrapped


def render(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> str:
    """One question and its answer as the chat template writes them."""
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert isinstance(text, str)
    return text


def examples(tokenizer: PreTrainedTokenizerFast, generator: random.Random) -> list[list[int]]:
    """One pass over the pretraining part: each passage as an answer, the rest as plain text."""
    texts: list[str] = []
    for record in read_documentation():
        if record.part != "pretraining":
            continue
        passages = [] if record.kind == "comment" else list(answers(record))
        for passage in passages:
            question = generator.choice(questions(passage))
            texts.append(render(tokenizer, question, passage.text))
        answered = sum(len(passage.text) for passage in passages)
        if answered < 0.9 * len(record.text):
            texts.extend(f"{BOS}{chunk}{END}" for chunk in chunks(record.text))
    return encode(tokenizer, texts)


def chunks(text: str) -> Iterator[str]:
    """Runs of whole paragraphs of at most :data:`PLAIN_CHUNK` characters, where they allow it."""
    current = ""
    for paragraph in text.split("\n\n"):
        if current and len(current) + len(paragraph) > PLAIN_CHUNK:
            yield current
            current = ""
        current = f"{current}\n\n{paragraph}" if current else paragraph
    yield current


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Ids of rendered texts, cut at :data:`LONGEST_EXAMPLE`."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [list(ids[:LONGEST_EXAMPLE]) for ids in encoded]


def batches(
    ids: Sequence[Sequence[int]], tokens: int, pad: int, generator: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of one pass, shuffled, rows of like length together, right-padded.

    A row is one example from its first token on, as comparisons are read later; nothing needs a
    mask, since padding stands behind every token that counts.
    """
    order = sorted(range(len(ids)), key=lambda row: (len(ids[row]) // 4, generator.random()))
    groups: list[list[int]] = [[]]
    for row in order:
        if (len(groups[-1]) + 1) * len(ids[row]) > tokens:
            groups.append([])
        groups[-1].append(row)
    generator.shuffle(groups)
    for group in groups:
        width = max(len(ids[row]) for row in group)
        inputs_BT = torch.full((len(group), width), pad)
        labels_BT = torch.full((len(group), width), -100)
        for at, row in enumerate(group):
            values = torch.tensor(ids[row])
            inputs_BT[at, : len(values)] = values
            labels_BT[at, : len(values)] = values
        yield inputs_BT, labels_BT


def stream(
    settings: Settings, tokenizer: PreTrainedTokenizerFast, start: int
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """``(step, epoch, inputs, labels)`` from step ``start`` on; the same for every way there."""
    step = epoch = 0
    while True:
        generator = random.Random(settings.seed * 1000 + epoch)
        ids = examples(tokenizer, generator)
        for inputs_BT, labels_BT in batches(
            ids, settings.tokens_per_step, int(tokenizer.pad_token_id), generator
        ):
            if step >= start:
                yield step, epoch, inputs_BT, labels_BT
            step += 1
        epoch += 1


def validation_set(tokenizer: PreTrainedTokenizerFast, part: str, count: int) -> list[list[int]]:
    """A fixed sample of question and answer examples of one part."""
    found: list[Documentation] = [
        passage
        for record in read_documentation()
        if record.part == part
        for passage in answers(record)
    ]
    chosen = random.Random(0).sample(found, min(count, len(found)))
    return encode(tokenizer, [render(tokenizer, questions(item)[0], item.text) for item in chosen])


@torch.no_grad()
def answer_loss(
    model: LlamaForCausalLM, ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast
) -> float:
    """Mean loss in nats over the tokens of the answers, their end token included."""
    header = tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert isinstance(header, int)
    total = count = 0.0
    for inputs_BT, labels_BT in batches(ids, 8192, int(tokenizer.pad_token_id), random.Random(0)):
        after_BT = torch.eq(inputs_BT, header).cumsum(dim=1) > 0
        labels_BT = labels_BT.masked_fill(~after_BT | torch.eq(inputs_BT, header), -100)
        loss, tokens = summed_loss(model, inputs_BT, labels_BT)
        total, count = total + float(loss), count + tokens
    return total / count


def summed_loss(
    model: LlamaForCausalLM, inputs_BT: Tensor, labels_BT: Tensor
) -> tuple[Tensor, int]:
    """Cross entropy summed over labelled tokens, and their number."""
    targets = labels_BT[:, 1:].flatten()
    labelled = targets != -100
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=inputs_BT, use_cache=False).last_hidden_state
    hidden, targets = hidden[:, :-1].flatten(0, 1)[labelled], targets[labelled]
    total = torch.zeros(())
    # Logits of a few tokens at a time stay in the cache; all at once they double the time.
    for some, right in zip(torch.split(hidden, 1024), torch.split(targets, 1024), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.lm_head(some)
        total = total + nn.functional.cross_entropy(logits.float(), right, reduction="sum")
    return total, len(targets)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The architecture of the base, newly initialised."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Twice as fast as the fused form for short rows of half precision on a CPU.
    model.set_attn_implementation("eager")
    return model


def make_optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(inside, lr=settings.muon_lr, weight_decay=settings.weight_decay),
        torch.optim.AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def schedule(step: int, settings: Settings) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine down to 2%."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a resumed run needs to know of the stopped one."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    since_best: int = 0


def train(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train to the last step, or until the validation loss has stood still for the patience."""
    model = make_model(tokenizer, settings.seed)
    optimizers = make_optimizers(model, settings)
    progress = load_checkpoint(settings, model, optimizers)
    held_out = validation_set(tokenizer, "training", 500)
    begun = saved = time.monotonic()
    before = progress.seconds
    last = min(settings.steps, settings.stop_at or settings.steps)
    for step, epoch, inputs_BT, labels_BT in stream(settings, tokenizer, progress.step):
        if step >= last or progress.since_best >= settings.patience:
            break
        loss = take_step(settings, model, optimizers, step, inputs_BT, labels_BT)
        progress.step, progress.tokens = step + 1, progress.tokens + inputs_BT.numel()
        progress.seconds = before + time.monotonic() - begun
        line: dict[str, Any] = {"step": step + 1, "epoch": epoch, "tokens": progress.tokens}
        line |= {"seconds": round(progress.seconds, 1), "training_loss": round(loss, 4)}
        if (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps:
            value = validate(settings, model, tokenizer, held_out, progress)
            line["validation_loss"] = round(value, 4)
        if (step + 1) % 10 == 0 or "validation_loss" in line:
            log(settings, line)
        if time.monotonic() - saved > 60 * settings.save_minutes:
            save_checkpoint(settings, model, optimizers, progress)
            saved = time.monotonic()
    save_checkpoint(settings, model, optimizers, progress)


def take_step(
    settings: Settings,
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    inputs_BT: Tensor,
    labels_BT: Tensor,
) -> float:
    """One optimizer step; the mean loss of its tokens before it."""
    for optimizer, rate in zip(optimizers, (settings.muon_lr, settings.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, settings)
    loss, tokens = summed_loss(model, inputs_BT, labels_BT)
    mean = loss / tokens
    mean.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(mean.detach())


def validate(
    settings: Settings,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    held_out: Sequence[Sequence[int]],
    progress: Progress,
) -> float:
    """The validation loss now; the weights are kept if none was lower."""
    value = answer_loss(model, held_out, tokenizer)
    progress.since_best += 1
    if value < progress.best:
        progress.best, progress.since_best = value, 0
        state = model.state_dict()
        write_atomically(settings.work / "best.pt", lambda path: torch.save(state, path))
    return value


def log(settings: Settings, line: dict[str, Any]) -> None:
    """One line of the log, on file and on screen."""
    text = json.dumps(line)
    print(text, flush=True)
    with (settings.work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def save_checkpoint(
    settings: Settings,
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Everything a run needs to go on as if it had not stopped."""
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
    }
    write_atomically(settings.work / "last.pt", lambda path: torch.save(state, path))


def load_checkpoint(
    settings: Settings, model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer]
) -> Progress:
    """The state of the last checkpoint put in place, or a fresh start."""
    path = settings.work / "last.pt"
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, inner in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(inner)
    progress = Progress(**state["progress"])
    trim_log(settings, progress.step)
    return progress


def trim_log(settings: Settings, step: int) -> None:
    """Drop lines of steps that were taken after the checkpoint, since they are taken again."""
    path = settings.work / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")


def write_base(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> None:
    """The folder that sequence classification loads: half-precision body, a head of zeros."""
    model = make_model(tokenizer, settings.seed)
    model.load_state_dict(torch.load(settings.work / "best.pt", weights_only=True))
    value = answer_loss(model, validation_set(tokenizer, "heldout", 10_000), tokenizer)
    print(json.dumps({"heldout_loss": round(value, 4)}))
    settings.out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    weights["score.weight"] = torch.zeros(1, model.config.hidden_size, dtype=torch.float16)
    path = settings.out / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by its owner alone
    config = model.config.to_dict()
    config |= {
        "architectures": ["LlamaForSequenceClassification"],
        "dtype": "float32",
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "num_labels": 1,
        "_name_or_path": "",
    }
    config.pop("_name_or_path")
    (settings.out / "config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    for path in sorted((settings.work / "tokenizer").iterdir()):
        shutil.copy(path, settings.out / path.name)


if __name__ == "__main__":
    main()
