"""A stand-in for CuPy: NumPy behind CuPy's names, refusing what CuPy refuses. It shows that code would run.

- Only the names and arguments of ``cupy_names.txt`` exist, and that list is checked against the real CuPy.
- A device array is no NumPy array: it never turns into one unless `get` is called, and an operation that mixes
  the two raises TypeError. Only `array` and `asarray` take host memory. (CuPy forwards some NumPy functions to
  its own and uploads NumPy arrays that serve as an index; here both are refused as well.)
- Sums give device arrays of shape (), never Python or NumPy numbers.
- Memory that nobody has written yet is NaN.
- Kernels are compiled by g++ and run by the emulator of tests/kernels.
- While a stream is captured, launches of kernels are recorded and not run, and everything else is refused.

`installed` puts it in CuPy's place. What it cannot show is anything about speed, memory or rounding on a GPU.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from tests.gpu.list_cupy_names import listed
from tests.kernels.emulator import EmulatedModule
from tinyres.backend import get_backend
from tinyres_gpu.kernels import CUPY
from tinyres_gpu.kernels.common.sources import KERNELS, read_source

UPLOADS = ("cupy.array", "cupy.asarray")
TRANSFERS: list[str] = []
"""Each copy between host and device since the test began, as ``to host`` or ``to device``."""


class ndarray:
    """An array that claims to live on a GPU."""

    __array_ufunc__ = None  # NumPy's operators leave mixed operations to ours, and its functions refuse

    def __init__(self, memory: Any) -> None:
        self._memory = np.asarray(memory)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called on an array of the device")

    @property
    def data(self) -> Any:
        """Where the memory begins, as `ptr`."""
        return types.SimpleNamespace(ptr=self._memory.ctypes.data)

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> Any:
        """Copy to the host."""
        _refuse_in_capture("a copy to the host")
        TRANSFERS.append("to host")
        return np.array(self._memory, order=order)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._memory, name)
        signature = _signature(f"cupy.ndarray.{name}")
        return _function(f"cupy.ndarray.{name}", value) if signature else _on_device(value)

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray(self._memory[_memory(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_in_capture("an assignment")
        self._memory[_memory(key)] = _memory(value)

    def __len__(self) -> int:
        return len(self._memory)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    __hash__ = None  # type: ignore[assignment]


ndarray.__module__ = "cupy"  # by which tinyres.array.array_module knows it


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: ndarray, *others: Any) -> Any:
        _refuse_in_capture("an operation on arrays")
        return _on_device(getattr(self._memory, name)(*(_memory(other) for other in others)))

    def operate_in_place(self: ndarray, other: Any) -> ndarray:
        _refuse_in_capture("an operation on arrays")
        getattr(self._memory, name)(_memory(other))
        return self

    return operate_in_place if name.startswith("__i") and name != "__invert__" else operate


for _dotted in listed():
    _name = _dotted.rpartition(".")[2]
    if _dotted.startswith("cupy.ndarray.__") and (_name == "__eq__" or not hasattr(ndarray, _name)):
        setattr(ndarray, _name, _operator(_name))
for _name in ("__ne__", "__lt__", "__le__", "__gt__", "__ge__"):  # `object` has these already
    setattr(ndarray, _name, _operator(_name))


def _memory(value: Any, *, upload: bool = False) -> Any:
    """Return what NumPy is to compute with, in place of device arrays; refuse arrays of the host."""
    if isinstance(value, ndarray):
        return value._memory
    if isinstance(value, tuple | list):
        return type(value)(_memory(one, upload=upload) for one in value)
    if isinstance(value, np.ndarray):
        if not upload:
            raise TypeError(f"Unsupported type {type(value)}: it is not on the device")
        TRANSFERS.append("to device")
        return value.copy()
    return value


def _on_device(value: Any) -> Any:
    """Return NumPy's result as CuPy would: arrays and NumPy's numbers as device arrays."""
    return ndarray(value) if isinstance(value, np.ndarray | np.generic) else value


@cache
def _signature(name: str) -> inspect.Signature | None:
    """Return the arguments that CuPy takes, None for what is not called; AttributeError if CuPy lacks it."""
    if name not in listed():
        raise AttributeError(f"{name} is not in cupy_names.txt: see list_cupy_names.py")
    text = listed()[name]
    return inspect.signature(eval(f"lambda {text[1:-1]}: None")) if text else None


def _function(name: str, numpy_function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of NumPy that takes device arrays, with the arguments that CuPy's has."""
    signature = _signature(name)
    assert signature is not None

    def call(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        _refuse_in_capture("an allocation")
        if name == "cupy.asarray" and isinstance(args[0], ndarray):
            return ndarray(np.asarray(args[0]._memory, *args[1:], **kwargs))
        upload = name in UPLOADS
        if upload and isinstance(args[0], list | tuple | int | float):
            TRANSFERS.append("to device")
        arguments = [_memory(value, upload=upload) for value in args]
        return _on_device(numpy_function(*arguments, **{key: _memory(v) for key, v in kwargs.items()}))

    return call


class _Module(types.ModuleType):
    """`cupy` and its submodules that hold functions on arrays: NumPy's, as far as CuPy has them."""

    def __init__(self, name: str, numpy_module: Any) -> None:
        super().__init__(name)
        self._numpy_module = numpy_module

    def __getattr__(self, name: str) -> Any:
        dotted = f"{self.__name__}.{name}"
        if any(other.startswith(dotted + ".") for other in listed()):
            return _Module(dotted, getattr(self._numpy_module, name))
        signature, value = _signature(dotted), getattr(self._numpy_module, name)
        return _function(dotted, value) if signature else value


# The few things that are about the card and not about arrays


class CUDARuntimeError(RuntimeError):
    """What a call to CUDA raises."""

    def __init__(self, status: int, what: str = "") -> None:
        super().__init__(f"cudaError {status} {what}".strip())
        self.status = status


class OutOfMemoryError(MemoryError):
    """What an allocation raises."""


class Event:
    """A point in a stream; everything here takes one millisecond."""

    def record(self, stream: Any = None) -> None:
        """Mark the point."""

    def synchronize(self) -> None:
        """Wait for it."""


WAITED: list[Event] = []
"""The events that streams were told to wait for."""


class Graph:
    """What was captured: launches with their arguments, which hold on to no memory on a real GPU."""

    def __init__(self, launches: list[Callable[[], None]]) -> None:
        self.launches = launches
        self.uploaded = False

    def upload(self, stream: Any = None) -> None:
        """Make ready to launch."""
        self.uploaded = True

    def launch(self, stream: Any = None) -> None:
        """Run everything, in order."""
        _refuse_in_capture("the launch of a graph")
        for launch in self.launches:
            launch()


class Stream:
    """A queue of work, here done at once; while it is captured, collected."""

    current: Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.null, self.captured = null, None
        self._before: list[Stream] = []

    def __enter__(self) -> Stream:
        self._before.append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *exception: object) -> None:
        Stream.current = self._before.pop()

    def enqueue(self, launch: Callable[[], None]) -> None:
        """Run a kernel, or record it."""
        if self.captured is None:
            launch()
        else:
            self.captured.append(launch)

    def record(self, event: Any = None) -> Event:
        """Mark the point that it has come to."""
        _refuse_in_capture("an event")
        return Event()

    def wait_event(self, event: Event) -> None:
        """Go on when the event's stream has come to it."""
        assert isinstance(event, Event)
        WAITED.append(event)

    def synchronize(self) -> None:
        """Wait for everything in it."""
        _refuse_in_capture("waiting for a stream")

    def begin_capture(self, mode: Any = None) -> None:
        """Record from here on."""
        if self.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        assert self.captured is None
        self.captured: list[Callable[[], None]] | None = []

    def end_capture(self) -> Graph:
        """Return what was recorded."""
        assert self.captured is not None
        graph, self.captured = Graph(self.captured), None
        return graph


Stream.current = Stream(null=True)


def _refuse_in_capture(what: str) -> None:
    """Raise what CUDA raises where a capture meets what cannot be captured."""
    if Stream.current.captured is not None:
        raise CUDARuntimeError(900, f"operation not permitted when stream is capturing: {what}")


class RawModule:
    """A module of kernels, on the emulator.

    A kernel is compiled together with the others of its source: g++ takes longer to start than to compile one.
    """

    def __init__(
        self, code: str, *, options: tuple[str, ...] = (), name_expressions: tuple[str, ...] = ()
    ) -> None:
        self.code, self.names = code, name_expressions

    def get_function(self, name: str) -> Callable[..., None]:
        """Return a kernel: ``kernel(grid, block, args)``, its arrays on the device."""
        assert name in self.names
        kernel = _compile(self.code).get_function(name)

        def launch(grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
            if any(isinstance(value, np.ndarray) for value in args):
                raise TypeError("an array of the host was passed to a kernel")
            Stream.current.enqueue(lambda: kernel(grid, block, [_memory(value) for value in args], shared_mem))

        return launch


@cache
def _compile(code: str) -> EmulatedModule:
    names = next((KERNELS[module] for module in KERNELS if read_source(module) == code), None)
    assert names is not None, "no module of tinyres_gpu.kernels has this source"
    return EmulatedModule(code, names)


def _empty(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    """Return memory that shows whether anybody reads it before it is written."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 0x55, dtype, order)


class MemoryPool:
    """The pool of a card whose memory nobody uses."""

    def total_bytes(self) -> int:
        """Return what it holds."""
        return 0

    def used_bytes(self) -> int:
        """Return what is in use."""
        return 0

    def free_all_blocks(self, stream: Any = None) -> None:
        """Give memory back."""


def stand_in() -> Any:
    """Return a new stand-in for the module `cupy`, with a card of 8 GB and CUDA 13.0."""
    card = {"name": b"a stand-in", "totalGlobalMem": 8 << 30, "major": 9, "minor": 0}
    card |= {"multiProcessorCount": 132, "l2CacheSize": 50 << 20}
    module: Any = _Module("cupy", np)
    module.__version__, module.ndarray = "14.2.0", ndarray
    module.get_default_memory_pool = MemoryPool
    module.RawModule = RawModule
    module.empty = _function("cupy.empty", _empty)
    module.cuda = types.SimpleNamespace(
        Event=Event,
        Stream=Stream,
        get_elapsed_time=lambda start_event, end_event: 1.0,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError, MemoryPool=MemoryPool),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            deviceSynchronize=lambda: None,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
            getDeviceProperties=lambda device: card,
            memGetInfo=lambda: (8 << 30, 8 << 30),
        ),
    )
    return module


def _forget() -> None:
    """Drop what was made with the module that was in CuPy's place up to now."""
    get_backend.cache_clear()
    CUPY.forget()


@contextmanager
def installed(module: Any) -> Iterator[Any]:
    """Put a module, or None for a CuPy that is not installed, in CuPy's place for a while."""
    missing = object()
    before = sys.modules.get("cupy", missing)
    sys.modules["cupy"] = module
    _forget()
    TRANSFERS.clear()
    try:
        yield module
    finally:
        _forget()
        if before is missing:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before  # type: ignore[assignment]
