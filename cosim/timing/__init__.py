"""When the device does what: workloads that run over the RTL and over the timed model alike, what is seen of them, and
what of the RTL's timing becomes a device file."""
