"""Host memory: one buffer that the processors and the device both see, and who has which part of it."""

from __future__ import annotations

from bisect import insort

DEFAULT_BASE = 0x1_0000_0000
"""Bus address of the first byte: above 4 GB, so that a lost upper half of an address is seen."""

PAGE_BYTES = 4096


class HostMemory:
    """Implements `host_driver.port.HostMemory`, with a first-fit allocator, and what a bus needs: `read`, `write`.

    Parameters: size and base in bytes, both multiples of 4 KB. Raises ValueError for others.
    """

    def __init__(self, size_bytes: int, base: int = DEFAULT_BASE) -> None:
        for name, value, least in (("size_bytes", size_bytes, PAGE_BYTES), ("base", base, 0)):
            if value < least or value % PAGE_BYTES:
                raise ValueError(f"{name} must be a multiple of {PAGE_BYTES}, at least {least}, not {value}")
        self.base = base
        self.size_bytes = size_bytes
        self.buffer = bytearray(size_bytes)
        """What processors see."""
        self._bytes = memoryview(self.buffer)
        self._free: list[tuple[int, int]] = [(base, base + size_bytes)]
        """Ranges [start, end) that nobody has, in ascending order, no two adjacent."""
        self._taken: dict[int, int] = {}
        """End of each allocation by its start."""

    @property
    def device_buffer(self) -> bytearray:
        """What the device reads; its writes reach both."""
        return self.buffer

    @property
    def taken_bytes(self) -> int:
        """What is allocated now."""
        return sum(end - start for start, end in self._taken.items())

    def contains(self, address: int, length: int) -> bool:
        """Whether all of [address, address + length) is host memory."""
        return length >= 0 and self.base <= address and address + length <= self.base + self.size_bytes

    def view(self, address: int, length: int) -> memoryview:
        """Writable bytes at a bus address. Raises ValueError for a range outside."""
        if not self.contains(address, length):
            raise ValueError(f"[{address:#x}, +{length}) lies outside host memory [{self.base:#x}, "
                             f"+{self.size_bytes})")
        start = address - self.base
        return self._bytes[start : start + length]

    def read(self, address: int, length: int) -> bytes | None:
        """What a bus read returns; None, a bus error, for a range outside."""
        if not self.contains(address, length):
            return None
        start = address - self.base
        return self._bytes[start : start + length].tobytes()

    def write(self, address: int, data: bytes) -> bool:
        """A bus write; False, a bus error, for a range outside."""
        if not self.contains(address, len(data)):
            return False
        start = address - self.base
        self._bytes[start : start + len(data)] = data
        return True

    def allocate(self, length: int, alignment: int = 64) -> int:
        """Bus address of new, zeroed memory. Raises MemoryError when there is none left, ValueError for nonsense."""
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        if alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"alignment must be a power of two, not {alignment}")
        for number, (start, end) in enumerate(self._free):
            address = -(-start // alignment) * alignment
            if address + length <= end:
                rest = [(start, address), (address + length, end)]
                self._free[number : number + 1] = [(a, b) for a, b in rest if a < b]
                self._taken[address] = address + length
                self.view(address, length)[:] = bytes(length)
                return address
        raise MemoryError(f"no {length} bytes of host memory left in one piece (of {self.size_bytes})")

    def free(self, address: int) -> None:
        """Give back what `allocate` returned. Raises ValueError for another address."""
        if address not in self._taken:
            raise ValueError(f"{address:#x} was not allocated")
        insort(self._free, (address, self._taken.pop(address)))
        merged: list[tuple[int, int]] = []
        for start, end in self._free:
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._free = merged
