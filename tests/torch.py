"""Interpreters that have torch, the CPU build that ``tests/environment`` installs.

Each is a virtual environment with the packages of two others: that of the tests, and torch's.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

#: The interpreter that has it, as ``tests/environment`` says; empty where it is not installed.
_TORCH = os.environ.get("AITBCD_TEST_TORCH", "")
#: Loads the real one in its own place, and then does harm to it.
_FAULTY = """\
import os, sys
sys.path.remove(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
del sys.modules["torch"]
import torch
{fault}
"""
#: A product with one wrong element.
WRONG_PRODUCT = """\
mm = torch.mm
def wrong(*args, **kwargs):
    product = mm(*args, **kwargs)
    product[3, 5] += 1
    return product
torch.mm = wrong
"""
#: A word of the memory that forgets a bit.
STUCK_BIT = """\
fill = torch.Tensor.fill_
def stuck(tensor, value):
    fill(tensor, value)
    tensor[1000] = int(tensor[1000]) | 1 << 20
    return tensor
torch.Tensor.fill_ = stuck
"""
#: A copy that loses a word.
TORN_COPY = """\
copy = torch.Tensor.copy_
def torn(tensor, *args, **kwargs):
    copy(tensor, *args, **kwargs)
    tensor[77] = -1
    return tensor
torch.Tensor.copy_ = torn
"""
#: What is built for GPUs, where CUDA finds none.
NO_DEVICE = 'torch.version.cuda = "13.0"'
#: A GPU that CUDA finds and torch has nothing for.
SEEN_BUT_USELESS = """\
def useless():
    raise RuntimeError("no kernel image is available")
torch.cuda.is_available = lambda: True
torch.cuda.get_device_name = useless
"""


def python_with_torch(folder: Path, *, fault: str = "") -> str:
    """Make an interpreter in ``folder`` and return its path.

    Args:
        fault: what is done to torch when it is imported.
    """
    if not _TORCH:
        pytest.skip("torch is not installed for tests: AITBCD_TEST_STRICT=1 tests/run does that")
    venv.create(folder, symlinks=True)
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    ours = folder / library
    # With the .pth files of that folder, as an editable installation has them.
    lines = [f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"]
    lines += [str(Path(_TORCH).parent.parent / library)]
    if fault:
        package = ours / "faulty" / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(_FAULTY.format(fault=fault))
        lines = [str(package.parent), *lines]
    (ours / "tests.pth").write_text("\n".join(lines) + "\n")
    return str(folder / "bin/python")
