"""Every kernel compiles for its architectures, and keeps what it computes with in registers."""

import os
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from tests.kernels.nvrtc import compile_for, version
from tests.kernels.test_emulator import PRODUCTS
from tests.kernels.tools import require_nvrtc
from tinyres_gpu.kernels.common.sources import KERNELS, ROOMS, SOURCES, read_file, read_source

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / ".ci" / "constraints-nvrtc.txt"
CASES = [
    (module, architecture)
    for module in KERNELS
    for architecture in ("sm_75", "sm_80", "sm_90")
    if architecture != "sm_75" or "tensor_core.cuh" not in SOURCES[module]  # TF32 and bfloat16 begin with sm_80
]


@require_nvrtc
@pytest.mark.parametrize(("module", "architecture"), CASES)
def test_every_kernel_compiles_and_none_spills(module, architecture):
    for name, resources in compile_for(read_source(module), KERNELS[module], architecture).items():
        assert resources.spilled_bytes == resources.stack_bytes == 0, (name, resources)
        assert resources.registers <= 128, (name, resources)  # two blocks of 256 threads fit a processor


@require_nvrtc
def test_the_compiler_is_the_one_that_was_asked_for():
    """CI names the version that it has installed to be tried; elsewhere any will do."""
    asked = os.environ.get("TINYRES_NVRTC", "")
    assert "{}.{}".format(*version()).startswith(asked)


@pytest.mark.skipif(not CONSTRAINTS.exists(), reason="the files for CI are not here")
def test_ci_tries_the_compilers_that_the_extras_install():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines())
    for extra, package in (("cuda12", "nvidia-cuda-nvrtc-cu12"), ("cuda13", "nvidia-cuda-nvrtc")):
        (toolkit,) = (words.split("==")[1] for words in extras[extra] if words.startswith("cuda-toolkit"))
        assert pinned[package].startswith(toolkit.removesuffix("*"))


@require_nvrtc
def test_what_the_emulator_runs_compiles_too():
    """The emulator's version of ptx.cuh and the real one offer the same functions."""
    compile_for(read_file("ptx.cuh") + PRODUCTS, ["bf16", "bf16_from_shared", "tf32"], "sm_80")


@require_nvrtc
def test_a_kernel_that_needs_too_many_registers_is_noticed():
    code = """
__global__ void __launch_bounds__(1024) hog(float* x) {
  float values[200];
  for (int i = 0; i < 200; i++) values[i] = x[i * 1024 + threadIdx.x];
  for (int i = 0; i < 200; i++) x[i * 1024 + threadIdx.x] = values[i] * values[199 - i] * values[(i + 7) % 200];
}"""
    resources = compile_for(code, ["hog"], "sm_80")["hog"]
    assert resources.spilled_bytes + resources.stack_bytes > 0
    with pytest.raises(ValueError, match="undefined"):
        compile_for("__global__ void broken() { nothing; }", ["broken"], "sm_80")


def test_every_file_belongs_to_a_module():
    listed = {name for names in SOURCES.values() for name in names}
    rooms = [files("tinyres_gpu.kernels") / room for room in ROOMS]
    found = [f.name for room in rooms for f in room.iterdir() if f.name.endswith((".cu", ".cuh"))]
    assert sorted(found) == sorted(listed)  # so no two rooms have a file of the same name
    assert SOURCES.keys() == KERNELS.keys()
