"""The list of all kinds. A new kind is a file of this folder and a line here."""

from __future__ import annotations

from torch import nn

from fastlrp.kinds import (
    activation,
    add,
    aggregate,
    attention,
    attention_weights,
    avg_pool,
    cat,
    chosen,
    custom_backward,
    detached,
    embedding,
    embedding_bag,
    experts,
    grid_sample,
    homogeneous,
    identity,
    linear_map,
    logsumexp,
    max_pool,
    move,
    mul,
    normalization,
    product,
    recurrence,
    scattered,
    unknown,
    weighted,
    write,
)
from fastlrp.kinds.kind import Kind

_ALL: tuple[Kind, ...] = (
    weighted.CONV,
    weighted.LINEAR,
    weighted.BATCH_NORM,
    normalization.KIND,
    activation.KIND,
    add.KIND,
    mul.KIND,
    product.KIND,
    attention.KIND,
    recurrence.KIND,
    attention_weights.KIND,
    cat.KIND,
    embedding.KIND,
    embedding_bag.KIND,
    move.KIND,
    write.KIND,
    max_pool.KIND,
    avg_pool.KIND,
    avg_pool.ADAPTIVE,
    linear_map.KIND,
    homogeneous.KIND,
    aggregate.SUM,
    aggregate.LARGEST,
    aggregate.SOFTMAX,
    logsumexp.KIND,
    grid_sample.KIND,
    experts.KIND,
    chosen.KIND,
    scattered.KIND,
    identity.KIND,
    detached.KIND,
    custom_backward.KIND,
    unknown.KIND,
    unknown.SCALAR,
)

KIND: dict[str, Kind] = {kind.name: kind for kind in _ALL}
KIND_OF: dict[str, str] = {operation: kind.name for kind in _ALL for operation in kind.operations.split()}
"""The kind of an ATen operation, both by name."""

KINDS = tuple(name for name in KIND if name != "scalar")
"""All kinds, as composites name them."""

WEIGHTED_KINDS = tuple(kind.name for kind in _ALL if kind.weighted)
RULED_KINDS = tuple(kind.name for kind in _ALL if kind.needs_rule)
NAMED_LIKE: dict[str, type[nn.Module]] = {
    operation: module for kind in _ALL for operation, module in kind.modules.items()
}
