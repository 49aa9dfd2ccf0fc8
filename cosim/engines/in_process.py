"""The `model` engine: a run over `nic_model.device`, in this process."""

from __future__ import annotations

from cosim.engines.base import DeviceCounts, Interrupted, Progress, RunError, RunSpec, SystemResult, failed_task
from cosim.engines.model import ModelPort
from cosim.errors import InputError
from cosim.experiment import Experiment
from host_driver.runtime import TaskFailed
from nic_model.contract import CONFIGS


def run(spec: RunSpec, on_progress: Progress) -> SystemResult:
    """Run it to its end; implements `cosim.engines.base.Engine`. The device's work takes no time."""
    if spec.wave is not None:
        raise InputError("--wave needs an engine with RTL; the model has no signals")
    with Experiment(spec, on_progress) as experiment:
        port = ModelPort(CONFIGS[spec.device], experiment.kernel, experiment.memory, experiment.wire,
                         read_latency_ps=spec.machine.bus.mmio_read_ns * 1000)
        experiment.attach(port, lambda: DeviceCounts(
            dma_read_bytes=port.dma_read_bytes, dma_write_bytes=port.dma_write_bytes, interrupts=port.interrupts))
        kernel = experiment.kernel
        try:
            while not experiment.done:
                time_ps = kernel.next_time()
                if time_ps is None:
                    raise RunError(experiment.stall_report())
                kernel.run_until(time_ps)
        except KeyboardInterrupt:
            raise Interrupted(experiment.partial()) from None
        except TaskFailed as error:
            raise failed_task(error) from error
        return experiment.result()
