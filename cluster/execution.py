"""Where shards are computed: in this process, by workers of a Ray that is started here, or by those of a running one."""

from dataclasses import dataclass

LOCAL_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Execution:
    """Where and by how many workers shards are computed."""

    workers: int | None = None
    """Most workers; None for as many as there is room for."""
    address: str | None = None
    """A running Ray: `auto`, `HOST:PORT` or `ray://HOST:PORT`; None to start one here."""
    gpus_per_worker: float | None = None
    """GPUs of a worker, a fraction for several on one; None for one where there are GPUs, else none."""
    cpus_per_worker: int | None = None
    """CPUs of a worker, which are also its threads; None for an even share of a machine."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers {self.workers}: give 1 or more, or leave it out")
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise ValueError(f"--cpus-per-worker {self.cpus_per_worker}: give 1 or more, or leave it out")
        gpus = None if self.gpus_per_worker is None else float(self.gpus_per_worker)
        if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer())):
            raise ValueError(f"--gpus-per-worker {gpus}: give a fraction of one GPU or a whole number")

    @property
    def distributed(self) -> bool:
        """Whether Ray is wanted at all."""
        return self.workers is not None or self.address is not None


@dataclass(frozen=True, slots=True)
class Demand:
    """What one worker takes of a node."""

    cpus: int
    """CPUs, and threads."""
    gpus: float
    """GPUs, or a fraction of one."""

    def fits(self, resources: dict[str, float]) -> int:
        """How many workers a node of these resources has room for."""
        by_cpu = int(resources.get("CPU", 0) // self.cpus)
        return min(by_cpu, _by_gpus(resources.get("GPU", 0), self.gpus)) if self.gpus else by_cpu

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{gpus}"


def demand_here(execution: Execution, n_gpus: int) -> tuple[int, Demand]:
    """How many workers a Ray on this machine gets, and what each takes.

    Args:
        n_gpus: GPUs that this process may use.

    Raises:
        ValueError: there are too few GPUs for the workers asked for.
    """
    import joblib  # deferred: the command line must not wait for it

    n_cpus = joblib.cpu_count()  # of this process: a batch system or a container gives it a part of its machine
    gpus = execution.gpus_per_worker if execution.gpus_per_worker is not None else float(n_gpus > 0)
    workers = execution.workers or (_by_gpus(n_gpus, gpus) if gpus else 1)
    if gpus and workers > _by_gpus(n_gpus, gpus):
        raise ValueError(
            f"{workers} workers with {gpus:g} GPU each need {gpus * workers:g}, and this machine has {n_gpus}; "
            "take fewer --workers or a fraction as --gpus-per-worker"
        )
    return workers, Demand(execution.cpus_per_worker or max(1, n_cpus // workers), gpus)


def demand_of(execution: Execution, nodes: list[dict[str, float]]) -> Demand:
    """What a worker takes of a running cluster: a GPU and a share of its node's CPUs; where no node has a GPU, the CPUs of the
    smallest node, or fewer where more workers are asked for than there would be room for.

    Args:
        nodes: the resources of each living node, as Ray names them.

    Raises:
        ValueError: no node has any CPU to give, so that nothing could tell what a worker is to take.
    """
    most_gpus = max((node.get("GPU", 0) for node in nodes), default=0)
    gpus = execution.gpus_per_worker if execution.gpus_per_worker is not None else float(most_gpus > 0)
    able = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
    if execution.cpus_per_worker is not None:
        return Demand(execution.cpus_per_worker, gpus)
    if not able:
        raise ValueError(
            "no node of the cluster has resources for a worker now, so say what one takes: --cpus-per-worker, --gpus-per-worker"
        )
    if gpus:
        return Demand(max(1, int(min(node["CPU"] / _by_gpus(node["GPU"], gpus) for node in able))), gpus)
    smallest = int(min(node["CPU"] for node in able))
    return Demand(smallest if execution.workers is None else min(smallest, _most_cpus(execution.workers, able)), 0.0)


def _most_cpus(workers: int, nodes: list[dict[str, float]]) -> int:
    """The most CPUs of a worker with which so many have room; 1 where they have none."""
    most = int(max(node["CPU"] for node in nodes))
    return next((cpus for cpus in range(most, 0, -1) if room(Demand(cpus, 0.0), nodes) >= workers), 1)


def _by_gpus(n_gpus: float, gpus: float) -> int:
    """Workers that so many GPUs have room for; a fraction is a fraction of one."""
    return int(n_gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(n_gpus // gpus)


def room(demand: Demand, nodes: list[dict[str, float]]) -> int:
    """How many workers the living nodes have room for."""
    return sum(demand.fits(node) for node in nodes)
