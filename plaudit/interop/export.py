"""``plaudit export``: write a reward model for a tool, reload it by the tool's rules, compare.

Shapes: R responses, all comparisons together, in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from plaudit import __version__, registry
from plaudit.errors import ModelError
from plaudit.interop.formats import Choices, Exportable, Exporter, Options, Written, locate
from plaudit.interop.parity import (
    TOLERANCE,
    CheckRows,
    Parity,
    ParityError,
    allowed,
    check_rows,
    given_by,
    largest_difference,
    order_changes,
    refuse_difference,
)
from plaudit.interop.sequence_classifier.write import belongs_to_head, is_adapter, merged
from plaudit.model.checkpoint import (
    BASE_FOLDER,
    ArtefactFacts,
    copy_base,
    resolve_base,
    save_tokenizer,
    write_facts,
)
from plaudit.model.load import output_layer
from plaudit.model.module import as_reward_module, classifier, has_score_head
from plaudit.model.scoring import score_trees
from plaudit.recipe.schema import Source
from plaudit.report.card import DerivedCard, write_derived_card
from plaudit.reward_model import RewardModel, load
from plaudit.storage.atomic import new_folder, write_json, writing
from plaudit.tokens.rendering import renderer_of
from plaudit.types import Affine, FloatArray

EXPORT_FILE = "export.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and how it was checked; ``parity`` is None where it was asked not to be.

    ``notes`` say what the layout could not hold, ``serving`` what a server must be told.
    """

    target: str
    dtype: str
    parity: Parity | None
    notes: tuple[str, ...]
    serving: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """What the written model must give, and what rounding did to get there."""

    rows: CheckRows
    rewards_R: FloatArray
    rounding: float | None
    order_changes: int | None


def export(
    model: str | Path,
    to: str,
    out: str | Path,
    *,
    dtype: str = "fp32",
    max_shard_size: str = "5GB",
    peft_config: str | None = None,
    normalize: bool = False,
    check: bool = True,
    rows: Source | None = None,
    tolerance: float = TOLERANCE,
    base: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    choices: Choices = Choices(),
) -> Exported:
    """Write ``model`` into the folder ``out`` in the layout of the exporter named ``to``.

    The folder appears when its check has passed. Weights are merged in fp32 and rounded once to
    ``dtype`` (``fp32``, ``bf16``, ``fp16``); the head stays fp32. ``choices`` say what another
    tool's files leave open.

    Raises:
        ModelError: the model cannot be loaded, or has no such form.
        DataError: ``rows`` cannot be used.
        OutputError: ``out`` exists, or cannot be written.
        ParityError: the reloaded export gives other scores than the model.
    """
    exporter: Exporter = registry.find("exporter", to)
    folder = Path(out)
    # A Hub id's files, its base among them where it carries one, lie in the cache.
    here = locate(model)
    options = Options(
        dtype=DTYPES[dtype],
        max_shard_size=max_shard_size,
        peft_config=peft_config,
        normalize=normalize,
    )
    reward_model = load(
        model,
        base=base,
        device=device,
        dtype="float32",
        trust_remote_code=trust_remote_code,
        **asdict(choices),
    )
    _refuse_own_code(reward_model.facts)
    refuse_unsuitable(to, exporter, reward_model.module.network, reward_model.facts, options)
    checked = check_rows(reward_model, here, rows) if check else None
    base_now = resolve_base(here, reward_model.facts, base)
    beside = Path(base_now).resolve() == (here / BASE_FOLDER).resolve()
    # A copy of the base beside the adapter is found where the folder is.
    base_named = str((folder / BASE_FOLDER).resolve()) if beside else base_now
    with new_folder(folder) as temporary:
        source, expected = _prepared(reward_model, exporter, options, checked, base_now, base_named)
        with writing(folder):
            written = exporter.write(source, temporary, options)
            facts, notes = _facts(source, exporter)
            _write_around(temporary, source, exporter, facts, beside=beside)
        # Two copies of a large model need not fit: the reloaded one takes this one's place.
        del source, reward_model
        parity, notes = None, (*written.notes, *notes)
        if expected is not None:
            parity = _check(exporter, temporary, base_now, facts, expected, written, tolerance)
            refuse_difference(parity, f"The {to} export")
            notes = (*notes, *_text_notes(to, exporter, facts, parity))
        done = Exported(target=to, dtype=dtype, parity=parity, notes=notes, serving=written.serving)
        write_json(temporary / EXPORT_FILE, _record(done, facts, Path(model)))
        write_derived_card(temporary, _card(done, exporter, facts, Path(model), folder.name))
    return done


def _refuse_own_code(facts: ArtefactFacts) -> None:
    if facts.trust_remote_code:
        raise ModelError(
            f"{facts.base} needs Python code of its own, which no export carries; use the model "
            "where it is."
        )


def _prepared(
    model: RewardModel,
    exporter: Exporter,
    options: Options,
    rows: CheckRows | None,
    base: str,
    base_named: str,
) -> tuple[Exportable, _Expected | None]:
    before = [] if rows is None else model.score_trees(rows.trees)
    source = prepare(
        model.module.network,
        model.tokenizer,
        model.facts,
        exporter=exporter,
        options=options,
        base=base,
        base_named=base_named,
    )
    if rows is None:
        return source, None
    if options.dtype is torch.float32:
        after = before
    else:
        # What the stored weights are worth, so that the reloaded file is compared to the digit.
        module = as_reward_module(source.network, Affine(offset=source.offset)).eval()
        after = score_trees(module, model.batcher, rows.trees)
    short = options.dtype is not torch.float32
    expected = _Expected(
        rows=rows,
        rewards_R=np.concatenate(after),
        rounding=float(np.abs(np.concatenate(after) - np.concatenate(before)).max())
        if short
        else None,
        order_changes=order_changes(before, after) if short else None,
    )
    return source, expected


def refuse_unsuitable(
    name: str, exporter: Exporter, network: Any, facts: ArtefactFacts, options: Options
) -> None:
    """What this model or these options cannot become is said before anything is written.

    Raises:
        ModelError: the model has no such form, or an option means nothing for it.
    """
    if exporter.decoders_only and not has_score_head(network):
        raise ModelError(
            f"{type(classifier(network)).__name__} is an encoder, and --to {name} holds decoders "
            "with one linear head only; export it with --to merged."
        )
    if exporter.layout == "adapter" and not is_adapter(network):
        raise ModelError(
            f"This model has no LoRA adapter, and --to {name} writes nothing else; export it with "
            "--to merged."
        )
    if options.peft_config is not None and (exporter.layout == "whole" or not is_adapter(network)):
        raise ModelError(
            f"--peft-config is about adapter_config.json, and --to {name} writes a whole model "
            "here; leave it out."
        )
    if options.normalize and (facts.reward_mean is None or not facts.reward_std):
        raise ModelError(
            "--normalize needs the mean and standard deviation of the evaluation rewards, and this "
            "model's plaudit.json has none; leave it out, or train with evaluation data."
        )


@torch.no_grad()
def prepare(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: ArtefactFacts,
    *,
    exporter: Exporter,
    options: Options,
    base: str,
    base_named: str,
) -> Exportable:
    """Fold, merge and round in place; ``network`` is not what it was afterwards.

    Raises:
        ModelError: merging gives weights that are not finite, or ``dtype`` cannot hold them.
    """
    if exporter.layout == "whole" and is_adapter(network):
        network = merged(network)
    offset = _fold(network, facts)
    round_weights(network, options.dtype)
    return Exportable(
        network=network,
        tokenizer=tokenizer,
        facts=facts,
        base=base,
        base_named=base_named,
        offset=offset,
    )


def _fold(network: Any, facts: ArtefactFacts) -> float:
    """Scale into the head, offset into its bias; returns the offset a head without bias leaves."""
    head: Any = output_layer(classifier(network))[1]
    head.weight.mul_(facts.affine.scale)
    if head.bias is None:
        return facts.affine.offset
    head.bias.mul_(facts.affine.scale).add_(facts.affine.offset)
    return 0.0


def round_weights(network: Any, dtype: torch.dtype) -> None:
    """Every weight but the head's to a value that ``dtype`` holds, kept in fp32.

    Raises:
        ModelError: a weight is over what ``dtype`` reaches.
    """
    for name, tensor in _rounded_tensors(network):
        rounded = tensor.to(dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise ModelError(
                f"{str(dtype).removeprefix('torch.')} cannot hold {name}: a value is too large; "
                "choose --dtype bf16 or fp32."
            )
        tensor.copy_(rounded)


def _rounded_tensors(network: Any) -> list[tuple[str, torch.Tensor]]:
    # What an adapter's files do not hold (the base) stays as it is.
    written = "lora_" if is_adapter(network) else ""
    return [
        (name, tensor)
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point()
        and (written in name or ".modules_to_save." in name)
        and not belongs_to_head(network, name)
    ]


def _facts(source: Exportable, exporter: Exporter) -> tuple[ArtefactFacts, tuple[str, ...]]:
    """``plaudit.json`` of the export, the same model in another form, and what to say of it.

    Gives the tokenizer the chat template of an imported model that has it elsewhere.
    """
    facts, tokenizer, notes = source.facts, source.tokenizer, []
    as_jinja = renderer_of(facts.rendering).as_jinja
    if as_jinja is not None and exporter.encode is not None:
        template = as_jinja(facts.rendering, facts.reading, tokenizer)
        if template is not None:
            tokenizer.chat_template = template
            notes.append(
                f"The chat template is {facts.rendering.template}, which this model was trained "
                "with, written as Jinja."
            )
    if facts.reading.rule != "last" and exporter.encode is None:
        notes.append(
            "This model scores the token before the end of a conversation, and the tool scores the "
            "last one: leave the end token off what it is given."
        )
    whole = exporter.layout == "whole"
    changed = replace(
        facts,
        kind="full" if whole else facts.kind,
        base=facts.base if whole else source.base_named,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        affine=Affine(offset=source.offset),
        plaudit_version=__version__,
    )
    return changed, tuple(notes)


def _write_around(
    folder: Path, source: Exportable, exporter: Exporter, facts: ArtefactFacts, *, beside: bool
) -> None:
    """Tokenizer, facts, and the base where an adapter carries its own."""
    save_tokenizer(source.tokenizer, folder)
    _name_tokenizer_class(folder / "tokenizer_config.json")
    if exporter.own_facts:
        write_facts(folder, facts)
    if exporter.layout != "whole" and facts.kind == "adapter" and beside:
        copy_base(source.base, folder)


def _name_tokenizer_class(path: Path) -> None:
    """The name of a tokenizer of ``tokenizer.json`` alone that transformers 4 knows too.

    transformers 5 writes ``TokenizersBackend``, and tools that run on 4 then load no tokenizer.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def _check(
    exporter: Exporter,
    folder: Path,
    base: str,
    facts: ArtefactFacts,
    expected: _Expected,
    written: Written,
    tolerance: float,
) -> Parity:
    """Score the model's own tokens, then those that the tool makes of the same rows."""
    sequences = expected.rows.sequences()
    wanted_R = given_by(written.gives, expected.rewards_R)
    score = exporter.read(folder, base)
    parity = Parity(
        rows=expected.rows.where,
        comparisons=len(expected.rows.trees),
        responses=len(sequences),
        largest_difference=largest_difference(score(sequences), wanted_R),
        tolerance=allowed(tolerance, wanted_R),
        rounding=expected.rounding,
        order_changes=expected.order_changes,
    )
    if exporter.encode is None:
        return parity
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = [
        ids for row in expected.rows.comparisons for ids in exporter.encode(tokenizer, facts, row)
    ]
    differs = [i for i, (a, b) in enumerate(zip(encoded, sequences, strict=True)) if a != b]
    found_R = score([encoded[i] for i in differs])
    return replace(
        parity,
        text_differs=len(differs),
        text_difference=largest_difference(found_R, wanted_R[differs]),
    )


def _text_notes(
    to: str, exporter: Exporter, facts: ArtefactFacts, parity: Parity
) -> tuple[str, ...]:
    """What the tool's own way of making tokens changes.

    Raises:
        ParityError: it should change nothing.
    """
    if not parity.text_differs:
        return ()
    plain = facts.rendering.kind == "chat_template" and facts.reading.rule == "last"
    if exporter.exact_text and plain:
        raise ParityError(
            f"The tokenizer of the {to} export encodes {parity.text_differs} of {parity.responses} "
            f"responses otherwise than the model does ({parity.rows}); nothing was written, please "
            "report this with the model's plaudit.json."
        )
    note = (
        f"From messages or text, {to} makes other tokens of {parity.text_differs} of "
        f"{parity.responses} responses than this model reads, and scores them up to "
        f"{parity.text_difference:.3g} apart; give it the token ids, or text that ends alike."
    )
    return (note,)


def _record(done: Exported, facts: ArtefactFacts, source: Path) -> dict[str, Any]:
    """``export.json``: what this folder is, and how far it was checked."""
    return {
        "format": 1,
        "plaudit_version": __version__,
        "source": source.name,
        "target": done.target,
        "dtype": done.dtype,
        "checked": done.parity is not None,
        "parity": None if done.parity is None else asdict(done.parity),
        "notes": list(done.notes),
        "serving": dict(done.serving),
        "base": facts.base,
        "base_revision": facts.base_revision,
        "text": facts.text,
        "max_length": facts.max_length,
    }


def _card(
    done: Exported, exporter: Exporter, facts: ArtefactFacts, source: Path, name: str
) -> DerivedCard:
    adapter = exporter.layout != "whole" and facts.kind == "adapter"
    return DerivedCard(
        name=name,
        made=f"Written from the reward model {source.name} as {exporter.help}, in {done.dtype}"
        + ("" if done.dtype == "fp32" else " with the head in fp32"),
        adapter=adapter,
        tags=(done.target,),
        text=facts.text,
        base=facts.base,
        base_revision=facts.base_revision,
        parity=None if done.parity is None else asdict(done.parity),
        notes=done.notes,
        serving=done.serving,
        results_of=source,
        usage=exporter.usage.replace("KIND", "lora" if adapter else "full") or None,
        plain=exporter.plain,
        served=exporter.served,
    )
