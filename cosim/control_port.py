"""A device with a control port, where the named one has none."""

from __future__ import annotations

from dataclasses import replace

from nic_model.contract import CONFIGS, NicConfig

FLOWS = 1024
"""Connections of the flow table that it gets."""


def with_control_port(config: NicConfig) -> NicConfig:
    """The device, with a control port if it has none."""
    return config if config.flows else replace(config, flows=FLOWS)


def device_config(name: str, *, control_port: bool) -> NicConfig:
    """The device of this name, with a control port if one is wanted. Raises KeyError for a name that is none."""
    return with_control_port(CONFIGS[name]) if control_port else CONFIGS[name]
