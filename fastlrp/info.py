"""``python -m fastlrp.info``: versions, how the extension was built, and each backend with its reason why not."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from fastlrp.backends import dispatch
from fastlrp.backends.extension import extension, extension_error


def short() -> str:
    """What to look at first, in fifteen lines at most: versions, and who computes what.

    Example::

        print(fastlrp.info.short())
    """
    lines = _versions(("compiler", "cuda", "instruction set in use"))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        taken: dict[str, list[str]] = {}
        for op in dispatch.OPS:
            taken.setdefault(dispatch.select(op, "auto", torch.device(device), torch.float32).backend, []).append(op)
        shares = ", ".join(f"{name} {len(ops)}" for name, ops in taken.items())
        lines.append(f"on {device} the {len(dispatch.OPS)} operations are computed by: {shares}")
    lines.append("all operations, and why a backend cannot run: fastlrp info --all")
    return "\n".join(lines)


def text() -> str:
    """What to paste into a bug report.

    Example::

        print(fastlrp.info.text())
    """
    lines = _versions()
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for dtype in (torch.float32, torch.float16):
            lines += ["", f"backends on {device}, {str(dtype).removeprefix('torch.')} ('auto' takes the one marked *)"]
            lines += _backends(torch.device(device), dtype)
    return "\n".join(lines)


def _versions(parts: tuple[str, ...] | None = None) -> list[str]:
    """Versions and how the extension was built, all of that or some parts."""
    rows = [
        ("fastlrp", package_version("fastlrp")),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    rows += [("torch", f"{torch.__version__} ({cuda}, {torch.get_num_threads()} threads)")]
    rows += [(name, package_version(name)) for name in ("numpy", "triton")]
    error = extension_error()
    if error is None:
        built = extension().build_info().items()
        rows += [(f"_C {key}", value) for key, value in built if parts is None or key in parts]
    else:
        rows += [("_C", f"does not load: {error}")]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    width = max(len(op) for op in dispatch.OPS)
    lines = []
    for op in dispatch.OPS:
        taken = dispatch.select(op, "auto", device, dtype).backend
        cells = []
        for name in dispatch.BACKENDS:
            why_not = dispatch.reason(name, op, device, dtype)
            cells.append(f"{name}{'*' if name == taken else ''}" if why_not is None else f"not {name}: {why_not}")
        lines.append(f"  {op:<{width}}  {'; '.join(cells)}")
    return lines


def package_version(package: str) -> str:
    """The version of an installed package, or ``"not installed"``.

    Args:
        package: its name, as pip has it.

    Example::

        assert fastlrp.info.package_version("numpy") != "not installed"
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print(text())
