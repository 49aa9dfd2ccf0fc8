"""TCP servers behind a VIA-like system area network: what the adapter is to software, and both ends of the sockets."""
