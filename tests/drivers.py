"""Kernels that Python can't load, through the program of driver.cpp: for another processor, or with sanitizers."""

import ctypes
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from resnetkit.kernels import operations as kernels

SOURCE = Path(__file__).parent / "driver.cpp"
Buffer = bytearray | memoryview


class Driver:
    """A running driver, which calls functions of a library."""

    def __init__(self, command: Sequence[str], **environ: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ or None
        )

    def call(self, name: str, types: Sequence[Any], arguments: Sequence[Any]) -> None:
        """Call a function. Arguments of type c_void_p are memory, None, or a list of memory; memory is changed."""
        sent, memories = [name.encode() + b"\n"], []
        for kind, argument in zip(types, arguments, strict=True):
            if kind is not ctypes.c_void_p:
                sent.append(
                    struct.pack({ctypes.c_long: "<q", ctypes.c_int: "<i", ctypes.c_float: "<f"}[kind], argument)
                )
                continue
            if isinstance(argument, list):
                sent.append(struct.pack("<q", len(argument)))
            for memory in argument if isinstance(argument, list) else [argument]:
                sent.append(struct.pack("<q", -1 if memory is None else len(memory)))
                if memory is not None:
                    sent.append(bytes(memory))
                    memories.append(memory)
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        try:
            stdin.write(b"".join(sent))
            stdin.flush()
        except BrokenPipeError:
            pass  # the message is below
        for memory in memories:
            answer = stdout.read(len(memory))
            if len(answer) != len(memory):
                raise AssertionError(f"{name}: {stderr.read().decode()}")
            memory[:] = answer

    def close(self) -> str:
        """End the program; return its messages."""
        _, messages = self.process.communicate()
        return messages.decode()

    def replace_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `operations` call the driver instead of the library that is loaded."""
        addresses: dict[int, Tensor] = {}
        address_of = Tensor.data_ptr

        def data_ptr(tensor: Tensor) -> int:
            addresses[address_of(tensor)] = tensor
            return address_of(tensor)

        def memory(address: int | None) -> Buffer | None:
            if address is None:
                return None
            tensor = addresses[address]
            size = tensor.numel() * tensor.element_size()
            return memoryview((ctypes.c_char * size).from_address(address)).cast("B")

        def argument(value: Any, kind: Any) -> Any:
            if isinstance(value, ctypes.Array):
                return (
                    [memory(one) for one in value] if value._type_ is ctypes.c_void_p else memoryview(value).cast("B")
                )
            return memory(value) if kind is ctypes.c_void_p else value

        def kernel(name: str, dtype: Any = None) -> Callable[..., None]:
            types = kernels._ARGUMENTS[name]
            function = name + (kernels._SUFFIXES[dtype] if dtype else "")
            return lambda *given: self.call(
                function, types, [argument(value, kind) for value, kind in zip(given, types, strict=True)]
            )

        monkeypatch.setattr(Tensor, "data_ptr", data_ptr)
        monkeypatch.setattr(kernels, "_kernel", kernel)
