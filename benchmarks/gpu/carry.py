"""What is made before a GPU is at hand, so that its minutes go into running: the extension and Triton's kernels.

    TORCH_CUDA_ARCH_LIST=9.0a python -m benchmarks.gpu.carry pack FOLDER      # on a machine with nvcc, without a GPU
    TORCH_CUDA_ARCH_LIST=9.0a python -m benchmarks.gpu.carry unpack FOLDER    # on the one with the GPU

Both with the same version of Python; the extension fits any PyTorch of the same version of CUDA. ``pack`` takes the
extension from ``fastlrp/``, and from Triton's cache (``TRITON_CACHE_DIR``) the kernels that ``python -m tests.gpu.smoke
--compile`` has asked for since ``--since``. ``unpack`` puts both back, and ends with 1, saying why, where the extension
is of other sources. Kernels of another Triton are not found in its cache and are compiled as ever.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = (".json", ".cubin", ".so")
"""Files that a launch reads: of a kernel, and of the extensions that launch it; the others tell how it was compiled."""


class CarryError(RuntimeError):
    """What was carried does not fit; the message says why."""


def described() -> dict[str, str]:
    """What the extension is made of and for."""
    import torch

    digest = hashlib.sha256()
    for path in sources():
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return {
        "sources": digest.hexdigest(),
        "python": sysconfig.get_config_var("EXT_SUFFIX"),
        "architectures": os.environ.get("TORCH_CUDA_ARCH_LIST", ""),
        "cuda": str(torch.version.cuda).split(".")[0],
    }


def sources() -> list[Path]:
    """What the extension is built from."""
    return [path for path in sorted([*(ROOT / "csrc").rglob("*.*"), ROOT / "setup.py"]) if path.is_file()]


def extension() -> Path:
    return ROOT / "fastlrp" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def cache() -> Path:
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def pack(folder: Path, since: float) -> None:
    """Write the extension, without its symbols, and the kernels that were asked for since then.

    Raises:
        CarryError: if the sources have changed since the extension was built.
    """
    newer = [path for path in sources() if path.stat().st_mtime > extension().stat().st_mtime]
    if newer:
        raise CarryError(f"{newer[0].relative_to(ROOT)} has changed since the extension was built: build it again")
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "extension.so"
    subprocess.run(["strip", "-o", str(plain), str(extension())], check=True)
    (folder / "extension.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    count = 0
    with tarfile.open(folder / "triton.tar.gz", "w:gz") as tar:
        for path in sorted(cache().glob("*/*")):
            if path.suffix in KEPT and path.is_file() and path.parent.stat().st_mtime >= since:
                tar.add(path, path.relative_to(cache()))
                count += path.suffix == ".cubin"
    (folder / "carry.json").write_text(json.dumps({**described(), "kernels": count}, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"carried in {folder}: the extension and {count} kernels, {size / 2**20:.1f} MiB")


def unpack(folder: Path) -> None:
    """Put the kernels into Triton's cache, and the extension into its place.

    Raises:
        CarryError: if the extension does not fit; the kernels are there then too.
    """
    try:
        made = json.loads((folder / "carry.json").read_text())
    except OSError as error:
        raise CarryError(f"{folder} holds nothing: {error}") from error
    print(f"{_kernels(folder / 'triton.tar.gz')} kernels are put into Triton's cache", flush=True)
    here = described()
    for name, wanted in here.items():
        if made.get(name) != wanted:
            raise CarryError(f"the extension was made for {name} {made.get(name)!r}, and this is {wanted!r}")
    extension().write_bytes(gzip.decompress((folder / "extension.gz").read_bytes()))
    link = ROOT / "fastlrp" / "kernels"
    if not link.exists():
        link.symlink_to(Path("..") / "kernels")
    print(f"the extension is put into {extension().parent}", flush=True)


def _kernels(file: Path) -> int:
    """Unpack them. Each lists its files by their whole paths, which are others here."""
    if not file.exists():
        return 0
    cache().mkdir(parents=True, exist_ok=True)
    with tarfile.open(file) as tar:
        tar.extractall(cache(), filter="data")
        groups = [cache() / name for name in tar.getnames() if Path(name).name.startswith("__grp__")]
    for group in groups:
        names = json.loads(group.read_text())["child_paths"]
        found = {name: str(group.parent / name) for name in names if (group.parent / name).exists()}
        group.write_text(json.dumps({"child_paths": found}))
    return len(groups)


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack or unpack."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", choices=("pack", "unpack"))
    words.add_argument("folder", type=Path)
    words.add_argument("--since", type=float, default=0.0, help="seconds since 1970; by default all kernels")
    options = words.parse_args(arguments)
    try:
        pack(options.folder, options.since) if options.what == "pack" else unpack(options.folder)
    except CarryError as reason:
        print(f"not carried: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
