"""How a run splits its steps into micro-batches: measured on the model as it will train.

Everything that decides memory is final by then: dtypes, the adapter, fused and compiled layers, the
layout of batches. What the first optimizer step will allocate is held back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

import torch

from plaudit.errors import TrainingError
from plaudit.model.module import RewardModule
from plaudit.planning.estimate import OPTIMIZER_STATES
from plaudit.planning.measure import Meter, as_in_a_step, measure_cost, measure_costs, pass_bytes
from plaudit.planning.microbatch import SPARE, Cost, MicroBatches, Shapes, choose, densest_trees
from plaudit.recipe.schema import MICROBATCH_TOKENS
from plaudit.tokens.batch import PackedBatcher, TokenBatcher
from plaudit.tokens.store import StoredTrees

_ATTEMPTS = 3
# A pass that ran out of memory needed more than there was, and does not tell how much.
_UNKNOWN_EXCESS = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRequest:
    """What the recipe says about a step: None where the run is to choose.

    ``trees_per_step`` is the number of comparisons of a step on all ranks.
    """

    tokens: int | None
    checkpointing: bool | None
    trees_per_step: int
    optimizer: str
    autocast: torch.dtype | None
    ranks: int = 1


def unmeasured(request: BudgetRequest, *, reason: str) -> MicroBatches:
    """The default size, no layer recomputed unless the recipe says so."""
    return MicroBatches(
        tokens=request.tokens or MICROBATCH_TOKENS,
        checkpointed_layers=None if request.checkpointing is not None else 0,
        reason=reason,
        asked=request.tokens,
    )


def decide_micro_batches(
    module: RewardModule,
    batcher: TokenBatcher,
    trees: StoredTrees,
    request: BudgetRequest,
    meter: Meter,
) -> MicroBatches:
    """The size of micro-batches and the layers that recompute, equal on all ranks.

    The module is left with these layers recomputed.

    Raises:
        TrainingError: the largest comparison does not fit.
    """
    packed = isinstance(batcher, PackedBatcher)
    shapes = stored_shapes(trees, packed=packed)
    # The padded size of a micro-batch is more than that of its trees, so only tokens bound it.
    per_step = request.trees_per_step if packed else len(shapes)
    request = replace(request, trees_per_step=per_step)
    with as_in_a_step(module):
        if request.checkpointing is None:
            costs = measure_costs(
                module,
                batcher,
                (trees, shapes),
                meter,
                trees_per_step=per_step,
                autocast=request.autocast,
            )
        else:
            cost = measure_cost(module, batcher, (trees, shapes), meter, per_step, request.autocast)
            costs = {} if cost is None else {0: cost}
        free = meter.free() - optimizer_bytes(module, request)
        chosen = _verified(module, batcher, (trees, shapes), meter, request, (costs, free))
    chosen = _agreed(chosen, module, request.ranks)
    if chosen is None:
        advice = (
            "" if request.checkpointing is not False else ", remove train.activation_checkpointing"
        )
        tokens, left = int(shapes.tokens_N.max()), max(0, free) / 1e9
        raise TrainingError(
            f"The largest comparison of the training data ({tokens:,} tokens) does not fit in the"
            f" memory of the device, of which {left:,.1f} GB are left beside weights, gradients and"
            f" optimizer states; lower tokens.max_length{advice}, or set model.quantize to 4bit."
        )
    if request.checkpointing is None:
        assert chosen.checkpointed_layers is not None
        module.checkpoint_layers(chosen.checkpointed_layers)
        return chosen
    return replace(chosen, checkpointed_layers=None)


def stored_shapes(trees: StoredTrees, *, packed: bool) -> Shapes:
    """The shapes of stored trees, without reading their ids."""
    spans_N = trees.lengths("branches")
    if not packed:
        longest_N = trees.column("longest").astype("int64")
        return Shapes(longest_N * spans_N, 0 * spans_N, spans_N)
    tokens_N = trees.column("packed")
    return Shapes(tokens_N, trees.column("separate") - tokens_N, spans_N)


def optimizer_bytes(module: RewardModule, request: BudgetRequest) -> int:
    """What the optimizer allocates in its first step, and DDP in its first backward pass."""
    states, state_bytes = OPTIMIZER_STATES.get(request.optimizer, (2, None))
    trainable = [p for p in module.parameters() if p.requires_grad]
    moments = sum(states * p.numel() * (state_bytes or p.element_size()) for p in trainable)
    buckets = sum(p.numel() * p.element_size() for p in trainable) if request.ranks > 1 else 0
    return moments + buckets


def _verified(
    module: RewardModule,
    batcher: TokenBatcher,
    corpus: tuple[StoredTrees, Shapes],
    meter: Meter,
    request: BudgetRequest,
    measured: tuple[dict[int, Cost], float],
) -> MicroBatches | None:
    """The choice, with the largest micro-batch that it allows run once."""
    trees, shapes = corpus
    costs, free = measured
    for attempt in count(1):
        chosen = choose(
            costs, shapes, free, trees_per_step=request.trees_per_step, tokens=request.tokens
        )
        if chosen is None:
            # Nothing to spare is better than no run.
            chosen = choose(
                costs,
                shapes,
                free / (1 - SPARE),
                trees_per_step=request.trees_per_step,
                tokens=request.tokens,
            )
        if chosen is None or chosen.checkpointed_layers is None:
            return None
        cost = costs[chosen.checkpointed_layers]
        if request.checkpointing is None:
            module.checkpoint_layers(chosen.checkpointed_layers)
        largest = densest_trees(cost, shapes, chosen.tokens, request.trees_per_step)
        found = pass_bytes(module, batcher, [trees[i] for i in largest], meter, request.autocast)
        # More than was to be left free, but it fits.
        close_enough = attempt >= _ATTEMPTS
        if found is not None and (close_enough or found <= (chosen.bytes_free or 0)):
            return chosen
        predicted = cost.fixed + float(cost.of(shapes)[largest].sum())
        least = max(_UNKNOWN_EXCESS, free / predicted) if found is None else found / predicted
        costs = {number: one.times(max(1.0, least)) for number, one in costs.items()}
    raise AssertionError("every attempt makes a pass cost more, until none is chosen")


def _agreed(chosen: MicroBatches | None, module: RewardModule, ranks: int) -> MicroBatches | None:
    """The fewest tokens and most recomputed layers of all ranks; None where one has no room."""
    if ranks == 1:
        return chosen
    tokens, layers = (0, 0) if chosen is None else (chosen.tokens, chosen.checkpointed_layers or 0)
    device = next(module.parameters()).device
    least = torch.tensor([tokens, -layers], device=device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    tokens, layers = int(least[0]), -int(least[1])
    if not tokens or chosen is None:
        return None
    return replace(chosen, tokens=tokens, checkpointed_layers=layers)
