"""The simulated server with the Linux kernel as its peer: a TAP interface in a network namespace, in real time."""
