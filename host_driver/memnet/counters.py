"""What one TCP server did for its applications, beside moving bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class MemNetCounters:
    """Counters of a `TcpServer`."""

    channels_granted: int = 0
    """Channel requests that were accepted."""
    channels_rejected: int = 0
    """Channel requests that were rejected because of the load."""
    channels_without_memory: int = 0
    """Times that further channels were granted, and there was no memory or no key for them."""
    channel_waits: int = 0
    """Accepts and connects that waited until a channel was given back."""

    credit_writes: int = 0
    """Words written into the other end's control region."""
    credit_stalls: int = 0
    """Times that an end had bytes to put into a ring and no credit left."""
    credit_errors: int = 0
    """Channels that ended because the application's end claimed what it had no credit for."""

    accepted_ahead: int = 0
    """Connections accepted before an application asked (Eager Accept)."""
    accepts_at_once: int = 0
    """Accept calls that were given one of these without waiting."""
    accept_ahead_stops: int = 0
    """Times that accepting ahead stopped at its limit."""

    received_ahead_bytes: int = 0
    """Bytes received before an application asked (Eager Receive)."""
    receives_at_once: int = 0
    """Receive jobs that were done with such bytes when they were posted."""
    receives_waited: int = 0
    """Receive jobs of a socket that receives ahead which found nothing there."""
    receive_ahead_stops: int = 0
    """Times that receiving ahead stopped at its limit, until the application had taken some."""

    capabilities_granted: int = 0
    capabilities_used: int = 0
    """Those whose bytes were all written."""
    capabilities_revoked: int = 0
    """Those taken back by the application, or because it, its socket, or the file server ended."""
    capability_bytes: int = 0
    """Bytes written to connections by whoever held a capability."""
    refused_forged: int = 0
    """Writes with a token that was never made."""
    refused_revoked: int = 0
    refused_reused: int = 0
    """Writes with a token that was used up."""
    refused_overrun: int = 0
    """Writes of more than a token had left."""

    buffers_touched: int = 0
    """Jobs in the checking mode whose bytes were touched."""

    applications_failed: int = 0
    """Applications that raised."""
    applications_killed: int = 0
    tasks_failed: int = 0
    """Tasks of applications that raised: of the sockets API, mostly handlers of a connection."""
    connections_reclaimed: int = 0
    """Connections that an application left open when it ended, and that were aborted."""
    regions_reclaimed: int = 0
    """Registered regions that it left behind."""
    jobs_reclaimed: int = 0
    """Jobs that were under way when it ended."""
