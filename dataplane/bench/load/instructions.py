"""The few BPF instructions that the benchmark's own small XDP programs are made of."""

import struct

STORE_BYTE, STORE_HALF, STORE_WORD = 0x72, 0x6A, 0x62
_STORE_REGISTER_HALF, _TO_BIG_ENDIAN, _ADD, _SUBTRACT = 0x6B, 0xDC, 0x0F, 0x1F
_LOAD_WORD, _LOAD_IMMEDIATE, _MOVE, _MOVE_IMMEDIATE, _ADD_IMMEDIATE = 0x61, 0x18, 0xBF, 0xB7, 0x07
_JUMP_GREATER, _CALL, _EXIT = 0x2D, 0x85, 0x95
_MAP_DESCRIPTOR, _TAIL_CALL, _GET_SMP_PROCESSOR_ID = 1, 12, 8


def instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """struct bpf_insn."""
    return struct.pack("=BBhi", code, source << 4 | destination, offset, immediate)


def leave(value: int) -> bytes:
    """Return a value."""
    return instruction(_MOVE_IMMEDIATE, 0, immediate=value) + instruction(_EXIT)


def tail_call(programs: int) -> bytes:
    """Go on with the first program of a map of them (its descriptor), or with what follows when that is empty."""
    return (
        instruction(_LOAD_IMMEDIATE, 2, _MAP_DESCRIPTOR, immediate=programs)
        + instruction(0)
        + instruction(_MOVE_IMMEDIATE, 3)
        + instruction(_CALL, immediate=_TAIL_CALL)
    )


def with_processor(program: bytes) -> bytes:
    """The program with the number of the processor that it runs on in r0; it must not use r6."""
    return (
        instruction(_MOVE, 6, 1)
        + instruction(_CALL, immediate=_GET_SMP_PROCESSOR_ID)
        + instruction(_MOVE, 1, 6)
        + program
    )


def store_by_processor(offset: int, value: int, *, down: bool = False) -> bytes:
    """Store `value` plus the processor's number (in r0), or less it, as 16 bits in network byte order, at that offset
    of the packet (whose start is in r2)."""
    return (
        instruction(_MOVE_IMMEDIATE, 3, immediate=value)
        + instruction(_SUBTRACT if down else _ADD, 3, 0)
        + instruction(_TO_BIG_ENDIAN, 3, immediate=16)
        + instruction(_STORE_REGISTER_HALF, 2, 3, offset)
    )


def on_packet(length: int, stores: bytes, then: bytes, otherwise: bytes) -> bytes:
    """A program that does `stores`, with the packet's start in r2, and `then`, if the packet has `length` bytes."""
    return (
        instruction(_LOAD_WORD, 2, 1, 0)  # r2 = data
        + instruction(_LOAD_WORD, 3, 1, 4)  # r3 = data_end
        + instruction(_MOVE, 4, 2)
        + instruction(_ADD_IMMEDIATE, 4, immediate=length)
        + instruction(_JUMP_GREATER, 4, 3, (len(stores) + len(then)) // 8)
        + stores
        + then
        + otherwise
    )
