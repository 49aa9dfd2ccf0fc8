"""The contract as text: two Markdown documents, registers and rings, and the control port; and a C header of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

from nic_model.contract import codes, control, registers, sockets
from nic_model.contract.config import CONTROL_SIZES, NicConfig
from nic_model.contract.counters import COUNTERS
from nic_model.contract.descriptors import COMPLETION, PIECE, RECEIVE_SLOT, SUBMISSION_HEAD, Field, Layout
from nic_model.contract.registers import (
    CHANNEL_STATUS,
    FLOW_RULE_COMMIT,
    KEY_COMMIT,
    MAX_KEYS,
    REGISTERS,
    RSS_CONTROL,
    Block,
    Register,
)
from nic_model.contract.steering import MAX_FLOW_RULES, RSS_INDIRECTION_ENTRIES, RULES_PER_BUCKET

LAYOUTS = (SUBMISSION_HEAD, PIECE, RECEIVE_SLOT, COMPLETION, CHANNEL_STATUS, KEY_COMMIT, RSS_CONTROL,
           FLOW_RULE_COMMIT)

CODES: tuple[type[Enum], ...] = (
    codes.Opcode, codes.OperationMask, codes.SendFlag, codes.CompletionKind, codes.Status, codes.RxInfo,
    codes.HashType, codes.KeyRight, codes.ChannelCommand, codes.ChannelState, codes.ChannelError, codes.RxFilter,
    codes.PauseControl,
    codes.Feature,
)

CONTROL_LAYOUTS = (*control.CONTROL_LAYOUTS, sockets.SOCKET_HEAD, sockets.SOCKET_PARAMETERS, sockets.SOCKET_COMPLETION,
                   sockets.EAGER_RESULT)

CONTROL_CODES: tuple[type[Enum], ...] = (
    control.ControlType, control.UpFlag, control.OrderFlag, control.DoneStatus, control.UnknownReason,
    control.ControlEnable, sockets.SocketFlag, sockets.SocketStatus, sockets.SocketOption,
)

CONTROL_LIMITS: dict[str, int] = {name: getattr(control, name) for name in (
    "UNIT_BYTES", "BEAT_BYTES", "CONTROL_VERSION", "NO_FLOW", "NO_LISTENER", "TIME_SHIFT", "TIMESTAMP_SHIFT",
    "TICK_SHIFT", "HEADER_PREFIX_BYTES", "MAX_EMIT_PIECES", "MAX_EMIT_OPTION_BYTES", "MAX_SACK_BLOCKS", "CELL_BYTES",
    "FLOW_PLACES", "MAX_HANDLES", "MAX_FLOWS", "MAX_SEGMENT_MERGE", "MAX_UNITS")}

LIMITS: dict[str, int] = {
    **{name: getattr(codes, name) for name in (
        "MAX_DESCRIPTOR_SLOTS", "MAX_INLINE_BYTES", "MAX_PIECES", "MAX_PIECE_BYTES", "MAX_FRAME_BYTES",
        "MAX_SEGMENTED_BYTES", "MIN_MSS", "MAX_CHANNELS", "RAW_CHANNEL", "RING_ALIGNMENT_BYTES", "SMALLEST_RING_LOG2",
        "LARGEST_RING_LOG2", "LARGEST_CQ_LOG2", "INDEX_BITS", "MAX_MODERATION_FRAMES", "PARSED_BYTES",
        "MAX_FRAME_BUFFERS", "MAX_AGGREGATE_BUFFERS", "MAX_COALESCED_BYTES",
        "MIN_TX_WEIGHT", "MAX_TX_WEIGHT", "DEFAULT_TX_WEIGHT", "TX_BYTE_TIME_FRACTION_BITS")},
    "MAX_KEYS": MAX_KEYS,
    "MAX_FLOW_RULES": MAX_FLOW_RULES, "RULES_PER_BUCKET": RULES_PER_BUCKET,
    "RSS_INDIRECTION_ENTRIES": RSS_INDIRECTION_ENTRIES,
    **{name: getattr(registers, name) for name in ("PUSH_WINDOW_BYTES", "PUSH_WINDOW_SLOTS", "PUSH_BLOCK_BYTES")},
}

_BLOCKS = {
    Block.GLOBAL: ("Global registers", 0, 0),
    Block.STEERING: ("Hash and flow rules", registers.STEERING_BASE, 0),
    Block.INDIRECTION: ("Indirection table entry i", registers.INDIRECTION_BASE, registers.INDIRECTION_STRIDE),
    Block.VECTOR: ("Interrupt vector v", registers.VECTORS_BASE, registers.VECTOR_STRIDE),
    Block.CHANNEL: ("Channel c", registers.CHANNELS_BASE, registers.CHANNEL_STRIDE),
    Block.KEY: ("Memory key k", registers.KEYS_BASE, registers.KEY_STRIDE),
    Block.DOORBELL: ("Doorbell page of channel c", registers.DOORBELL_BASE, registers.DOORBELL_STRIDE),
}


def reset_value(register: Register, config: NicConfig | None) -> str:
    """A register's reset value as text; of a size register, the size in `config`, or the size's name."""
    if isinstance(register.reset, int):
        return f"{register.reset:#x}" if register.reset > 9 else str(register.reset)
    return register.reset if config is None else f"{int(getattr(config, register.reset)):#x}"


def markdown(config: NicConfig | None = None) -> str:
    """The whole contract as a Markdown document; with a device's own sizes when `config` is given."""
    return "\n".join(_markdown(config)) + "\n"


def _markdown(config: NicConfig | None) -> Iterator[str]:
    yield "# The contract between hardware and software"
    yield ""
    command = "memnic regs" + (f" --device {config.name}" if config else "")
    yield f"Written by `{command}` from `nic_model/contract`. Little-endian; addresses in bytes."
    for block, (title, base, stride) in _BLOCKS.items():
        at = f" at {base:#x}" + (f" + {stride:#x} * {title[-1]}" if stride else "") if base else ""
        yield f"\n## {title}{at}\n"
        yield "| offset | name | access | reset | unit | meaning |\n|---|---|---|---|---|---|"
        for r in REGISTERS.values():
            if r.block is block:
                yield (f"| {r.offset:#05x} | `{r.name}` | {r.access.name} | {reset_value(r, config)} | {r.unit} "
                       f"| {r.meaning} |")
    yield f"\n## Counters, 64 bits each, from {registers.COUNTERS_BASE:#x}\n"
    yield "| offset | name | unit | meaning |\n|---|---|---|---|"
    for index, counter in enumerate(COUNTERS):
        yield f"| {8 * index:#05x} | `{counter.name}` | {counter.unit} | {counter.meaning} |"
    for layout in LAYOUTS:
        yield from _layout_table(layout, layout.fields)
    yield "\n## Codes"
    for kind in CODES:
        yield from _code_table(kind)
    yield from _limit_table(LIMITS)


def control_port_markdown() -> str:
    """The control port as a Markdown document: rules, messages, socket operations, counters, codes, limits."""
    return "\n".join(_control_port_markdown()) + "\n"


def _control_port_markdown() -> Iterator[str]:
    yield "# The control port"
    yield ""
    yield ("Written by `memnic regs --part control-port` from `nic_model/contract/control.py` and"
           " `nic_model/contract/sockets.py`.")
    yield ""
    assert control.__doc__ is not None
    yield control.__doc__.replace("`TIME_SHIFT`", str(control.TIME_SHIFT)).replace(
        "`TIMESTAMP_SHIFT`", str(control.TIMESTAMP_SHIFT)).strip()
    yield ""
    yield "\n## Rules\n"
    for number, rule in enumerate(control.RULES, 1):
        yield f"{number}. {rule}"
    yield "\n## Header of every message, 8 bytes\n"
    yield from _field_rows(control.CONTROL_HEADER.fields)
    for layout in CONTROL_LAYOUTS:
        shared = control.CONTROL_HEADER.fields
        yield from _layout_table(layout, {n: field for n, field in layout.fields.items() if shared.get(n) is not field})
    yield "\n## Counters of a device with a control port, behind those of `docs/registers.md`\n"
    yield "| name | unit | meaning |\n|---|---|---|"
    for counter in control.CONTROL_COUNTERS:
        yield f"| `{counter.name}` | {counter.unit} | {counter.meaning} |"
    yield "\n## Sizes\n"
    yield "Parameters of `NicConfig`; as they are when nothing else is said:\n"
    yield "| name | value |\n|---|---|"
    for name in CONTROL_SIZES:
        yield f"| `{name}` | {NicConfig.__dataclass_fields__[name].default} |"
    yield "\n## Codes"
    for kind in CONTROL_CODES:
        yield from _code_table(kind)
    yield from _limit_table(CONTROL_LIMITS)


def _layout_table(layout: Layout, fields: Mapping[str, Field]) -> Iterator[str]:
    yield f"\n## {layout.name[0].upper()}{layout.name[1:]}, {layout.size_bytes} bytes\n"
    yield from _field_rows(fields)


def _field_rows(fields: Mapping[str, Field]) -> Iterator[str]:
    if not fields:
        yield "Nothing but the header."
        return
    yield "| byte | bits | field | meaning |\n|---|---|---|---|"
    for name, field in fields.items():
        bit = f".{field.offset % 8}" if field.offset % 8 else ""
        yield f"| {field.offset // 8}{bit} | {field.width} | `{name}` | {field.meaning} |"


def _code_table(kind: type[Enum]) -> Iterator[str]:
    yield f"\n### {kind.__name__}\n"
    yield "| value | name |\n|---|---|"
    for member in kind:
        yield f"| {member.value:#x} | `{member.name}` |"


def _limit_table(limits: Mapping[str, int]) -> Iterator[str]:
    yield "\n## Limits\n"
    yield "| name | value |\n|---|---|"
    for name, limit in limits.items():
        yield f"| `{name}` | {limit} |"


def c_header() -> str:
    """The contract as a C header: offsets, field positions, codes, limits. Every macro starts with MEMNIC_."""
    return "\n".join(_c_header()) + "\n"


def _c_header() -> Iterator[str]:
    yield "/* SPDX-License-Identifier: Apache-2.0"
    yield " * Written by `memnic regs --format c` from nic_model/contract: change it there. */"
    yield "#ifndef MEMNIC_CONTRACT_H"
    yield "#define MEMNIC_CONTRACT_H\n"
    yield f"#define MEMNIC_MAGIC {registers.MAGIC:#010x}u"
    yield f"#define MEMNIC_VERSION_VALUE {registers.VERSION:#010x}u\n"
    yield "/* Registers, by byte address. */"
    for r in REGISTERS.values():
        _, base, stride = _BLOCKS[r.block]
        note = f" /* {r.access.value}{': ' + r.meaning if r.meaning else ''} */"
        if stride:
            yield f"#define MEMNIC_{r.name}(i) ({base:#x}u + {stride:#x}u * (i) + {r.offset:#x}u){note}"
        else:
            yield f"#define MEMNIC_{r.name} {base + r.offset:#x}u{note}"
    yield "\n/* Counters: low word, then high word. */"
    for index, counter in enumerate(COUNTERS + control.CONTROL_COUNTERS):
        yield f"#define MEMNIC_COUNTER_{counter.name.upper()} {registers.COUNTERS_BASE + 8 * index:#x}u"
    for layout in LAYOUTS + CONTROL_LAYOUTS:
        yield f"\n/* {layout.name.capitalize()}: bit offset and width of each field. */"
        yield f"#define MEMNIC_{_macro(layout)}_BYTES {layout.size_bytes}u"
        for name, field in layout.fields.items():
            yield f"#define MEMNIC_{_macro(layout)}_{name.upper()}_BIT {field.offset}u"
            yield f"#define MEMNIC_{_macro(layout)}_{name.upper()}_WIDTH {field.width}u"
    for kind in CODES + CONTROL_CODES:
        yield f"\n/* {kind.__name__} */"
        for member in kind:
            yield f"#define MEMNIC_{_snake(kind.__name__)}_{member.name} {member.value:#x}u"
    yield "\n/* Limits */"
    for name, limit in (LIMITS | CONTROL_LIMITS).items():
        yield f"#define MEMNIC_{name} {limit}u"
    yield "\n#endif"


def _macro(layout: Layout) -> str:
    return layout.name.upper().replace(" ", "_")


def _snake(name: str) -> str:
    return "".join("_" + c if c.isupper() and at else c for at, c in enumerate(name)).upper()
