"""Copies of the user's model, and whether it has changed since."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.fingerprint import Fingerprint
from fastlrp.capture.watch import Code, held_tensors, outline
from fastlrp.compat.zennit.effective import attributes, hidden, rebind, settle
from fastlrp.compat.zennit.recognise import is_hook

_BEFORE, _AFTER = ("_forward_pre_hooks",), ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


class Seen:
    """What a model consists of. Keeps the model itself alive no longer than others do.

    Args:
        values: also notice other numbers in its parameters and buffers, not only other parameters and modules.
        held: also notice changes of what its modules hold beside these: lists, arrays, settings, modules in lists. The
            twin has copies of them.
    """

    def __init__(self, model: nn.Module, values: bool, held: bool = False) -> None:
        modules = list(model.modules())
        self._training = model.training
        self._modes = [(module, module.training) for module in modules[1:]]
        tables = [t for m in modules for t in (m._modules, m._parameters, m._buffers)]
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = [(table, dict(table)) for table in tables]
        self._own = [(module, attributes(module)) for module in modules[1:]]
        self._root = attributes(model)
        hiding = [item for module in modules for _, _, item in hidden(module)]
        found = [item for table in tables for item in table.values()] + hiding if values else []
        tensors = [item for item in found if isinstance(item, Tensor)] + (held_tensors(modules) if held else [])
        self._numbers, self._other_numbers = Fingerprint(tensors), False
        self._code = Code(modules[1:], with_hooks=False) if held else None
        self._outline = outline([model], with_hooks=False) if held else None

    def changed(self, model: nn.Module) -> bool:
        """Whether the model is no longer what it was."""
        if model.training != self._training or any(module.training != mode for module, mode in self._modes):
            return True
        for table, items in self._tables:
            if len(table) != len(items):
                return True
            for key, item in items.items():
                if table.get(key) is not item:
                    return True
        if attributes(model) != self._root or any(attributes(module) != seen for module, seen in self._own):
            return True
        if self._code is not None and (self._code.changed() or outline([model], with_hooks=False) != self._outline):
            return True
        self._other_numbers |= self._numbers.changed()
        return self._other_numbers


def zennit_hooks(model: nn.Module) -> dict[str, Any]:
    """Zennit's hooks that stand on the model now, by module path.

    Raises:
        RuntimeError: for two on one module.
    """
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        owners = {id(o): o for o in map(_owner, module._forward_pre_hooks.values()) if is_hook(o)}
        if len(owners) > 1:
            names = ", ".join(type(owner).__name__ for owner in owners.values())
            raise RuntimeError(f"module {path!r} has {len(owners)} of Zennit's hooks ({names}): remove all but one")
        found.update((path, owner) for owner in owners.values())
    return found


def _owner(hook: Any) -> Any:
    return getattr(hook, "__self__", None)


def refuse_hooks(model: nn.Module) -> bool:
    """Refuse hooks that would see nothing; whether the model has any of Zennit's.

    Pre-hooks that compute weights (``torch.nn.utils.weight_norm``, pruning) are part of the model and stay.

    Raises:
        RuntimeError: for other forward or backward hooks than Zennit's: the model's modules are captured, not called.
    """
    registered = False
    for module in model.modules():
        if not any(getattr(module, table) for table in (*_BEFORE, *_AFTER)):
            continue
        registered |= any(is_hook(_owner(hook)) for hook in module._forward_pre_hooks.values())
        for table in _AFTER:
            for hook in getattr(module, table).values():
                if not is_hook(_owner(hook)):
                    path = next(name for name, other in model.named_modules() if other is module)
                    raise RuntimeError(_unseen(path, table, hook))
    return registered


def _unseen(path: str, table: str, hook: Any) -> str:
    name = getattr(hook, "__name__", type(hook).__name__)
    return (
        f"module {path!r} has a {table.strip('_').replace('_', ' ').removesuffix('s')} ({name}). The attributor "
        "captures the model once and does not call its modules, so that such a hook would see nothing. For the "
        f"relevance of hidden layers ask for it: attributor(input, attr_output, layers=[{path!r}]); for activations "
        "call the model yourself. Then remove the hook (handle.remove())"
    )


def _with_positive_eps(copied: nn.Module) -> None:
    """Write ``var + eps`` of Zennit 1.0.0's merged batch norms, 1 + 0, as 0.5 + 0.5: PyTorch 2.10 and 2.11 refuse 0."""
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.eps == 0:
            var = module.running_var
            if var is not None and bool((var == 1).all()):
                module.running_var = torch.full_like(var, 0.5)
                module.eps = 0.5


def twin(model: nn.Module, share: bool) -> nn.Module:
    """A copy of the model's modules without Zennit's hooks.

    Args:
        share: with the model's own parameters and buffers, so that training shows in the copy too; else with copies.

    Raises:
        TypeError: for a model that cannot be copied.
    """
    memo: dict[int, Any] = {}
    originals = list(model.modules())
    for module in originals:
        for name in (*_BEFORE, *_AFTER):
            table = getattr(module, name)
            if table:
                memo[id(table)] = OrderedDict((k, h) for k, h in table.items() if not is_hook(_owner(h)))
        for item in vars(module).values():
            if isinstance(item, Tensor):  # No parameter: a weight that a pre-hook computes cannot be deep-copied.
                memo[id(item)] = item if share else item.detach().clone()
        if share:
            memo.update((id(t), t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    try:
        # Else a copy of a model that was made in inference mode would not be one.
        with torch.inference_mode(any(t.is_inference() for t in (*model.parameters(), *model.buffers()))):
            found = copy.deepcopy(model, memo)
            rebind(found, {id(module): memo[id(module)] for module in originals if id(module) in memo})
            settle(found)
            if not share:
                _with_positive_eps(found)
            return found
    except Exception as error:
        raise TypeError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). The attributor works on a "
            "copy of the modules, so that yours stay as they are; fastlrp.Explainer(model, composite) needs none"
        ) from error
