"""Whether the probes of a step fit into memory, before a run."""

from __future__ import annotations

from difc_ray.config import Config
from difc_ray.errors import ConfigError
from difc_ray.models import Model
from difc_ray.step.division import parts_of
from difc_ray.step.factory import objective_of
from difc_ray.vectors import ParameterLayout


def check_memory(config: Config, model: Model, available_bytes: int) -> None:
    """Whether the probes of one worker, and their products, fit into the memory that there is.

    Args:
        config: the run's configuration, of a run with a penalty.
        model: its model.
        available_bytes: free on this machine.

    Raises:
        ConfigError: they alone do not, whatever the activations take.
    """
    alignment = config.alignment
    sets = len(objective_of(config).probe_sets())
    if alignment.scope == "head" and not sets:
        return
    count, remedy = alignment.probes * sets if sets else 1, "Write `alignment.scope=head`, or free some memory."
    if sets and alignment.probes > 1:
        remedy = "Lower `alignment.probes` (one is the usual number)."
    if alignment.scope == "all":
        size, outputs = ParameterLayout.of(model).size, 0  # one product after the other
    else:
        size = sum(parameter.numel() for parameter in model.head.parameters())
        outputs = -(-config.batch_size // parts_of(config)) * model.head.out_features  # all products at once
    wanted = 4 * count * (2 * size + outputs)
    if wanted > available_bytes:
        raise ConfigError(
            f"probes of `alignment.scope={alignment.scope}` and their products must fit into memory, got {count:,} of "
            f"{size:,} entries, {wanted / 2**20:,.0f} MiB per worker against {available_bytes / 2**20:,.0f} MiB free. "
            f"{remedy}"
        )
