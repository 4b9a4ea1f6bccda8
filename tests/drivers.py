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

    def call(self, name: str, arguments: Sequence[Any]) -> None:
        """Call a function with arguments int, float, memory, None, or lists of memory and None; memory is changed."""
        sent, memories = [f"{name}\n{len(arguments)}\n".encode()], []

        def add(memory: Buffer | None) -> None:
            sent.append(struct.pack("<q", -1 if memory is None else len(memory)))
            if memory is not None:
                sent.append(bytes(memory))
                memories.append(memory)

        for argument in arguments:
            if isinstance(argument, float):
                sent.append(struct.pack("<cf", b"f", argument))
            elif isinstance(argument, int):
                sent.append(struct.pack("<cq", b"i", argument))
            elif isinstance(argument, list):
                sent.append(struct.pack("<cq", b"p", len(argument)))
                for memory in argument:
                    add(memory)
            else:
                sent.append(b"m")
                add(argument)
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        try:
            stdin.write(b"".join(sent))
            stdin.flush()
        except BrokenPipeError:
            pass  # the message is below
        for memory in memories:
            answer = stdout.read(len(memory))
            if len(answer) != len(memory):
                messages, code = stderr.read().decode(), self.process.wait()
                raise AssertionError(f"{name}: the program ended with {code}: {messages}")
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
            if kind is not ctypes.c_void_p:
                return float(value) if kind is ctypes.c_float else int(value)
            value = getattr(value, "_obj", value)  # of ctypes.byref
            if isinstance(value, ctypes.Structure):
                return [memory(getattr(value, name)) for name, _ in value._fields_]
            if isinstance(value, ctypes.Array):
                return (
                    [memory(one) for one in value] if value._type_ is ctypes.c_void_p else memoryview(value).cast("B")
                )
            return memory(value)

        def kernel(name: str, dtype: Any = None) -> Callable[..., None]:
            function = name + (kernels._SUFFIXES[dtype] if dtype else "")
            types = kernels._ARGUMENTS[name]
            return lambda *given: self.call(function, [*map(argument, given, types)])

        monkeypatch.setattr(Tensor, "data_ptr", data_ptr)
        monkeypatch.setattr(kernels, "_kernel", kernel)
