"""Which register a byte address means: the contract's map as comparisons."""

from amaranth.utils import exact_log2

from nic_model.contract import CHANNEL_STRIDE, VECTOR_STRIDE, NicConfig, channel_register, vector_register


def is_channel_register(config: NicConfig, address, name: str):
    """1 if `address` (a Value) is register `name` of any channel of the device."""
    return _matches(address, channel_register(name, 0), CHANNEL_STRIDE, config.channels)


def channel_of(config: NicConfig, address):
    """Channel number in the address of a channel's register."""
    return _index(address, CHANNEL_STRIDE, config.channels)


def is_vector_register(config: NicConfig, address, name: str):
    """1 if `address` (a Value) is register `name` of any vector of the device."""
    return _matches(address, vector_register(name, 0), VECTOR_STRIDE, config.vectors)


def vector_of(config: NicConfig, address):
    """Vector number in the address of a vector's register."""
    return _index(address, VECTOR_STRIDE, config.vectors)


def _matches(address, first: int, stride: int, count: int):
    # Blocks are naturally aligned powers of two, so that the index is a bit field and the rest a constant.
    low, high = exact_log2(stride), exact_log2(stride * count)
    if first >> low & (count - 1):
        raise ValueError(f"a block of {count} registers from {first:#x} is not aligned to its size")
    return (address[:low] == first & (stride - 1)) & (address[high:] == first >> high)


def _index(address, stride: int, count: int):
    low = exact_log2(stride)
    return address[low:low + exact_log2(count)]
