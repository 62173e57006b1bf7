"""What to explain: from what a user writes to blocks of initial relevance."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from fastlrp.targets.class_names import Labels
from fastlrp.targets.classes import (
    TARGETS,
    Terms,
    contrasts,
    entries,
    has_contrasts,
    integer,
    integers,
    is_relevance,
    plain,
)
from fastlrp.targets.initial import Initial, given_relevance, initial_values
from fastlrp.targets.one_hot import OneHot
from fastlrp.targets.positions import Positions, flat_index, positions
from fastlrp.targets.spellings import Each, NextTokens


class Targets:
    """K targets of one output.

    Args:
        targets: an int; a sequence, range or 1-D integer tensor of K classes; a 2-D ``(B, K)`` integer tensor;
            ``"all"``; ``"top5"``; :func:`fastlrp.each` of one class per sample; a contrast, ``{3: 1.0, 17: -1.0}``,
            one target of weighted classes, or a list with contrasts; :func:`fastlrp.next_tokens`; or a float or bool
            tensor ``(K, *output.shape[1:])`` or ``(B, K, *output.shape[1:])`` that is the initial relevance itself,
            which an integer tensor may be too where it can't be classes, see
            :func:`fastlrp.targets.classes.is_relevance`. On outputs with more axes a class is an index of axis 1,
            unless ``at`` says otherwise.
        output: the model's output ``(B, C, …)``.
        initial: ``"output"`` (the target's own score), ``"one"``, or a callable from the output to initial relevance
            of the output's shape, of which the target picks its entries. A contrast starts with weight times that.
        at: positions of an output ``(B, S, V)`` whose last axis are the classes, or places of ``(B, C, *S)``, see
            :func:`fastlrp.targets.positions.positions`: every target at every position, positions outermost.
            ``"pairs"``: targets are ``(position, class)``, or tuples with an index for each axis of the output.

    Attributes:
        count: K. classes: how many there are. index: ``(B, K)`` the class of each target; None for contrasts, for
            initial relevance and with ``at="pairs"``. given: initial relevance that was given, ``(B, K, …)``.
        labels: the names of the classes, if the explainer knows them.

    Raises:
        IndexError: for a class or position that the output does not have.
        ValueError, TypeError: for anything else that does not fit; the message says what would.
    """

    def __init__(self, targets: Any, output: Tensor, initial: Initial = "output", at: Any = None) -> None:
        if output.dim() < 1 or not output.is_floating_point():
            raise ValueError(
                f"the output to explain must be a float tensor (B, C, …), got {tuple(output.shape)} {output.dtype}"
            )
        self.output = output
        self.batch = output.shape[0]
        self.index: Tensor | None = None
        self.given: Tensor | None = None
        self._terms: Terms | None = None
        self._hot: OneHot | None = None
        self._weight: Tensor | None = None
        self.labels: Labels | None = None
        if at is None and initial == "output" and self._are_classes(targets):
            return
        pairs = isinstance(at, str) and at == "pairs"
        known = isinstance(at, Positions)
        self._at = at if known else None if at is None or pairs else positions(at, output)
        if isinstance(targets, NextTokens):
            self._at = self._followed(targets, self._at)
        self.classes = output.shape[1] if output.dim() > 1 else 1
        if self._at is not None:
            self.classes = self._at.classes
        if pairs and output.dim() < 3:
            raise ValueError(
                f"at='pairs' takes an index for each axis of an output (B, S, V), and the output explained here is "
                f"{tuple(output.shape)}: leave at= out"
            )
        if not pairs and self._is_relevance(targets):
            self.given = given_relevance(targets, self.output, initial, at)
            self.count = self.given.shape[1]
            return
        terms = self._of_pairs(targets) if pairs else self._chosen(targets)
        self._place(terms, self._initial_values(initial), pairs)

    def _are_classes(self, targets: Any) -> bool:
        """The commonest targets, classes as integers of scores ``(B, C)``, taken without a look at anything else.

        False, and nothing has been done, for all others, and where a class is out of range.
        """
        output = self.output
        # On a GPU a class out of range would be no error that can be caught.
        if output.dim() != 2 or not output.is_cpu or self.batch == 0:
            return False
        classes = output.shape[1]
        index = plain(targets, self.batch, classes)
        if index is None:
            return False
        try:
            values = output.gather(1, index)
        except RuntimeError:
            return False
        self.classes, self.count, self.index, self._values = classes, index.shape[1], index, output
        self._at = None
        self._hot = OneHot.of_classes(index, values, (classes,))
        return True

    def _is_relevance(self, targets: Any) -> bool:
        if self._at is not None and hasattr(targets, "dtype"):  # An integer tensor names classes of each position.
            tensor = targets if isinstance(targets, Tensor) else torch.as_tensor(targets)
            return tensor.is_floating_point() or tensor.dtype == torch.bool
        return is_relevance(targets, tuple(self.output.shape))

    # Classes

    def _chosen(self, targets: Any) -> Terms:
        """Which classes the targets are, checked."""
        batch, device = self.batch, self.output.device
        if isinstance(targets, NextTokens):
            assert self._at is not None
            ids = targets.ids.to(device).gather(1, self._at.cells[..., 0] + 1)
            terms = Terms(ids[:, :, None, None])
        elif isinstance(targets, str):
            return self._named(targets)
        elif has_contrasts(targets):
            terms = contrasts(targets, batch, integer, device)
        elif isinstance(targets, Each) and not isinstance(targets.items, Tensor):
            raise TypeError(f"targets must be {TARGETS}: tuples per sample need at='pairs'")
        else:
            terms = Terms(integers(targets, batch, device)[:, None, :, None])
        self._check_range(terms.index)
        return terms

    def _check_range(self, index: Tensor) -> None:
        classes = self.classes
        if not index.numel():
            return
        least, most = (int(bound) for bound in torch.aminmax(index))
        if least < 0 or most >= classes:
            wrong = least if least < 0 else most
            has = f"has {classes} classes, 0 to {classes - 1}" if classes > 1 else "has one class, 0"
            has = has if classes else "has no class"
            raise IndexError(f"target {wrong} is out of range: the output {tuple(self.output.shape)} {has}")

    def _named(self, name: str) -> Terms:
        """``"all"`` or ``"top5"``, of each position if there are some."""
        classes = self.classes
        if name == "all":
            every = torch.arange(classes, device=self.output.device)
            return Terms(every.view(1, 1, -1, 1).expand(self.batch, -1, -1, -1))
        if name == "next":
            raise ValueError(
                "targets 'next' needs the token ids that the model was given: ask an explainer or a record, or write "
                "targets=fastlrp.next_tokens(ids)"
            )
        match = re.fullmatch(r"top(\d+)", name)
        if match is None or int(match[1]) == 0:
            raise ValueError(
                f"targets {name!r} is not known: use 'all' or 'top5' (any number), 'next' for the next tokens of a "
                "text, or a class as an integer; by its name where there is Explainer(model, labels=[…])"
            )
        k = int(match[1])
        if k > classes:
            raise IndexError(f"targets {name!r} asks for {k} classes, the output has {classes}")
        if self.output.dim() == 1:
            return Terms(torch.zeros((self.batch, 1, 1, 1), dtype=torch.long, device=self.output.device))
        if self._at is None and self.output.dim() != 2:
            raise ValueError(
                f"targets {name!r} needs an output (B, C), got {tuple(self.output.shape)}; of an output with positions "
                "name some, at=-1"
            )
        scores = self.output.unsqueeze(1) if self._at is None else self._at.scores(self.output)
        return Terms(scores.topk(k, dim=2).indices.unsqueeze(3))

    def _followed(self, targets: NextTokens, at: Positions | None) -> Positions:
        """The positions that a token of the text follows."""
        shape, ids = tuple(self.output.shape), tuple(targets.ids.shape)
        if len(shape) != 3 or (at is not None and not at.last):
            raise ValueError(
                f"next tokens are targets of an output (B, S, V), and the output explained here is {shape}"
            )
        if ids != shape[:2]:
            raise ValueError(f"the output {shape} has {shape[1]} positions for {shape[0]} texts, the ids are {ids}")
        if shape[1] < 2:
            raise ValueError(f"the output {shape} has one position, which no token of the text follows")
        if at is None:
            return positions(range(shape[1] - 1), self.output)
        if at.cells.numel() and int(at.cells.max()) == shape[1] - 1:
            raise IndexError(f"position {shape[1] - 1} is the text's last: no token follows it that could be a target")
        return at

    def _of_pairs(self, targets: Any) -> Terms:
        """Places in the flattened output."""
        shape = tuple(self.output.shape)

        def key(place: tuple[Any, ...]) -> int:
            return flat_index(place, shape[1:], f"target {place!r}", shape, first=1)

        if isinstance(targets, NextTokens):
            raise ValueError("next tokens have positions of their own: leave at= out")
        if isinstance(targets, str):
            raise TypeError(f"targets {targets!r} can't be pairs: with at='pairs' give [(position, class), …]")
        return entries(targets, self.batch, len(shape) - 1, self.output.device, key)

    # Initial relevance

    def _place(self, terms: Terms, values: Tensor, pairs: bool) -> None:
        """Where in the output the targets stand, and with what they start."""
        self._values, weight = values, terms.weight
        if weight is not None:
            weight = weight.to(values.dtype)
        if self._at is None and not pairs and self.output.dim() > 2:  # All positions of a class.
            index = terms.index[:, 0]
            self._terms = Terms(index, None if weight is None else weight[:, 0])
            self.index = index[..., 0] if weight is None else None
            self.count = index.shape[1]
            return
        index = terms.index
        at = self._at
        if at is not None:
            cells = at.cells.shape[1]
            flat = at.flat(index.expand(-1, cells, -1, -1))
            if at.inside is not None:
                weight = torch.ones_like(index, dtype=values.dtype) if weight is None else weight
                weight = at.inside[:, :, None, :, None] * weight.unsqueeze(3)
                weight = weight.expand(-1, cells, *weight.shape[2:]).flatten(3)
            elif weight is not None:
                weight = weight.unsqueeze(3).expand(-1, cells, -1, at.cells.shape[2], -1).flatten(3)
        else:
            flat = index
        places = flat.flatten(1, 2)  # (B, K, M)
        self.count = places.shape[1]
        if weight is not None:
            self._weight = weight.flatten(1, 2)
        elif not pairs:
            classes = index[..., 0].expand(-1, 1 if at is None else at.cells.shape[1], -1)
            self.index = classes.flatten(1)
        self._hot = OneHot(places, self._weighted(self._picked(values, places)), tuple(self.output.shape[1:]))

    def _picked(self, values: Tensor, places: Tensor) -> Tensor:
        return values.reshape(self.batch, math.prod(values.shape[1:])).gather(1, places.flatten(1)).view(places.shape)

    def _weighted(self, picked: Tensor) -> Tensor:
        return picked if self._weight is None else picked * self._weight

    @property
    def position(self) -> Tensor | None:
        """``(B, K)``: the position of each target on an output ``(B, S, V)``, where ``at`` named some."""
        if self._at is None or not self._at.last:
            return None
        cells = self._at.cells[..., 0]
        return cells.repeat_interleave(self.count // cells.shape[1], 1)

    @property
    def contrast(self) -> tuple[Tensor, Tensor] | None:
        """``(B, K, M)`` twice, classes and weights, where targets weigh classes and have at most one position each."""
        if self._terms is not None:
            return None if self._terms.weight is None else (self._terms.index, self._terms.weight)
        if self._hot is None or self._weight is None or self._hot.index.shape != self._weight.shape:
            return None
        if self._at is None:
            return (self._hot.index, self._weight) if self.output.dim() < 3 else None
        plain = self._at.last and self._at.inside is None and self._at.cells.shape[2] == 1
        return (self._hot.index % self.classes, self._weight) if plain else None

    @property
    def terms(self) -> int | None:
        """Entries of each target where they are few places of the output, which may start one-hot; None otherwise."""
        return None if self._hot is None else self._hot.terms

    def scores(self) -> Tensor:
        """``(B, K)``: the model's score of each target, times its weights; of initial relevance the sum."""
        if self._hot is not None:
            return self._weighted(self._picked(self.output, self._hot.index)).sum(2)
        if self.given is not None:
            return self.given if self.given.dim() == 2 else self.given.flatten(2).sum(2)
        assert self._terms is not None
        totals = self.output.flatten(2).sum(2)
        picked = totals.gather(1, self._terms.index.flatten(1)).view(self._terms.index.shape)
        return (picked if self._terms.weight is None else picked * self._terms.weight).sum(2)

    def asked_for(self) -> Tensor | None:
        """The scores that are explained, for a look at their numbers; None where initial relevance was given."""
        if self._hot is not None:
            return self._picked(self.output, self._hot.index)
        return None if self.given is not None else self.output

    def _initial_values(self, initial: Initial) -> Tensor:
        return initial_values(initial, self.output)

    def block(self, start: int, length: int, one_hot: bool = False) -> Tensor | OneHot:
        """Initial relevance ``(B, length, *output.shape[1:])`` of targets ``start`` to ``start + length - 1``."""
        if self.given is not None:
            return self.given.narrow(1, start, length)
        if self._hot is not None:
            part = self._hot if length == self.count else self._hot.narrow(1, start, length)
            return part if one_hot else part.dense()
        assert self._terms is not None
        index, weight = self._terms.index.narrow(1, start, length), self._terms.weight
        tail = self.output.shape[2:]
        where = index.view(*index.shape, *(1,) * len(tail)).expand(*index.shape, *tail)
        values = self._values.unsqueeze(1).expand(-1, length, *self._values.shape[1:]).gather(2, where)
        if weight is not None:
            values = values * weight.narrow(1, start, length).view(*index.shape, *(1,) * len(tail))
        zero = self.output.new_zeros(self.batch, length, *self.output.shape[1:])
        return zero.scatter_add_(2, where, values) if weight is not None else zero.scatter_(2, where, values)
