"""The `model` engine: a run without RTL, in this process.

Over `nic_model.device`, which takes no time; or, when the device is a device file, over `nic_model.timed_device`.
"""

from __future__ import annotations

from cosim.engines.base import DeviceCounts, Interrupted, Progress, RunError, RunSpec, SystemResult, failed_task
from cosim.engines.bench import bus_timing
from cosim.engines.model import ModelPort
from cosim.engines.timed import TimedPort
from cosim.errors import InputError
from cosim.experiment import Experiment
from cosim.timing.device_file import is_device_file, load_device
from host_driver.runtime import TaskFailed


def _port(spec: RunSpec, experiment: Experiment) -> ModelPort | TimedPort:
    if is_device_file(spec.device):
        model = load_device(spec.device)
        return TimedPort(model, experiment.kernel, experiment.memory, experiment.wire,
                         bus_timing(spec.machine, model.config, spec.seed))
    return ModelPort(spec.config, experiment.kernel, experiment.memory, experiment.wire,
                     read_latency_ps=spec.machine.bus.mmio_read_ns * 1000)


def run(spec: RunSpec, on_progress: Progress) -> SystemResult:
    """Run it to its end; implements `cosim.engines.base.Engine`."""
    if spec.wave is not None:
        raise InputError("--wave needs an engine with RTL; the model has no signals")
    with Experiment(spec, on_progress) as experiment:
        port = _port(spec, experiment)
        experiment.attach(port, lambda: DeviceCounts(
            dma_read_bytes=port.dma_read_bytes, dma_write_bytes=port.dma_write_bytes, interrupts=port.interrupts),
            port.take_bus)
        if spec.system.is_on_device:
            if not isinstance(port, ModelPort):
                raise InputError(f"system {spec.system.name} needs a control port, which device files do not have: "
                                 "name a device instead")
            experiment.attach_firmware(port.control, port.device.config.port_facts)
        try:
            if not experiment.kernel.run_while(lambda: not experiment.done):
                raise RunError(experiment.stall_report())
        except KeyboardInterrupt:
            raise Interrupted(experiment.partial()) from None
        except TaskFailed as error:
            raise failed_task(error) from error
        return experiment.result()
