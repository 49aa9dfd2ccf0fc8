"""A device with a control port, where the named one has none."""

from __future__ import annotations

from dataclasses import replace

from nic_model.contract import NicConfig

FLOWS = 1024
"""Connections of the flow table that it gets."""


def with_control_port(config: NicConfig) -> NicConfig:
    """The device, with a control port if it has none."""
    return config if config.flows else replace(config, flows=FLOWS)
