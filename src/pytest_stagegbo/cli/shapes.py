"""What `--json` prints: a struct for each shape. docs/json.md says what is promised of them.

These are not the structs that the rest of the package works with: what scripts read does not change with those. The
schemas in docs/schemas are made from them, by docs/schemas.py.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, convert

__all__ = ["Part", "Report", "shaped"]

S = TypeVar("S", bound="Report | Part")


class Report(Struct, kw_only=True, tag_field="schema"):
    """One JSON object. `schema` names its shape and the shape's version."""


class Part(Struct, kw_only=True):
    """An object within a report."""


def shaped(shape: type[S], found: Any) -> S:
    """The attributes of a record that a shape has."""
    return convert(found, shape, from_attributes=True)


Seconds = Annotated[float, Meta(description="seconds")]
Moment = Annotated[str, Meta(description="ISO 8601, UTC; empty where there is none")]


class Step(Part):
    """A step of a plan."""

    key: Annotated[str, Meta(description="verb and subject: `copy:cache`")]
    text: Annotated[str, Meta(description="for people")]
    changes: Annotated[bool, Meta(description="false: it only looks or waits")]
    after: Annotated[list[str], Meta(description="keys of the steps that have to be done before")]


class Plan(Part):
    """What provisioning would do."""

    steps: list[Step]
    notes: Annotated[list[str], Meta(description="what people should know")]
    details: Annotated[list[str], Meta(description="what only the authors need")]


class ProvisionPlan(Report, Plan, tag="stagegbo.provision-plan/1"):
    """`provision --dry-run --json`, for a stage without slots."""


class Readiness(Part):
    """A clone after provisioning."""

    state: Annotated[str, Meta(description="`ready` or `sealed`")]
    answers: Annotated[dict[str, str], Meta(description="by port, what its service answered")]
    warnings: list[str]


class Timing(Part):
    """When a step was done, in seconds since the first one began."""

    key: str
    began: Seconds
    ended: Seconds


class Provisioned(Part):
    """What provisioning has done to one stage."""

    changed: bool
    steps: Annotated[list[str], Meta(description="keys of the steps that changed something")]
    notes: list[str]
    containers: dict[str, Readiness]
    timings: list[Timing]
    seconds: Seconds
    requests: Annotated[int, Meta(description="to the Incus daemon")]


class Provision(Report, Provisioned, tag="stagegbo.provision/1"):
    """`provision --json`, for a stage without slots."""

    start_up: Annotated[Seconds, Meta(description="seconds that the process took before it began")]


class SlotsPlan(Report, tag="stagegbo.provision-slots-plan/1"):
    """`provision --dry-run --json`, with several slots, a pool of its own, or --refresh."""

    slots: Annotated[dict[str, Plan], Meta(description="by project; the golden copy's alone while there is none")]
    arithmetic: Annotated[list[str], Meta(description="why so many slots fit, for people")]
    renewed: Annotated[list[str], Meta(description="containers that are copied from production again")]


class Slots(Report, tag="stagegbo.provision-slots/1"):
    """`provision --json`, with several slots, a pool of its own, or --refresh."""

    golden: Annotated[Provisioned | None, Meta(description="null: the golden copy needed nothing")]
    slots: Annotated[dict[str, Provisioned], Meta(description="by project")]
    renewed: list[str]
    seconds: Seconds


class Method(Part):
    """How a container was reset."""

    method: Annotated[
        str, Meta(description="`untouched`, `hot`, `restart`, `restore`, or of a database `spare` or `database`")
    ]
    reason: Annotated[str, Meta(description="why a quicker method was not enough")] | UnsetType = UNSET


class Reset(Report, tag="stagegbo.reset/1"):
    """`reset --json`."""

    reset: Annotated[list[str], Meta(description="containers that are clean, proven")]
    methods: dict[str, Method]
    seconds: Seconds


class File(Part):
    """A file in a clone that is not production's."""

    container: str
    artefact: str
    path: str
    sha256: str
    size: Annotated[int, Meta(description="bytes")]
    since: Moment
    by: Annotated[str, Meta(description="`user@host` who deployed it")]
    source: Annotated[str, Meta(description="path on that host")]
    state: Annotated[str, Meta(description="`done`, `deploying`, `undoing` or `damaged`")]


class Deploy(Report, tag="stagegbo.deploy/1"):
    """`deploy --json` and `deploy --undo --json`."""

    changed: bool
    steps: list[str]
    seconds: Seconds
    builds: Annotated[list[File], Meta(description="every deployed file of the stage, afterwards")]


class DeployStep(Part):
    """A step of a deployment."""

    key: str
    text: str


class DeployPlan(Report, tag="stagegbo.deploy-plan/1"):
    """`deploy --dry-run --json`."""

    steps: list[DeployStep]


class Builds(Report, tag="stagegbo.builds/1"):
    """`deploy --list --json`."""

    builds: list[File]


class Baseline(Report, tag="stagegbo.baseline/1"):
    """`baseline save --json` and `baseline use --json`."""

    name: str
    containers: list[str]
    seconds: Seconds


class BaselineDeleted(Report, tag="stagegbo.baseline-deleted/1"):
    """`baseline delete --json`."""

    deleted: Annotated[str, Meta(description="its name")]


class SavedBaseline(Part):
    """A baseline."""

    name: str
    bytes: int
    since: Moment
    by: str
    containers: list[str]
    build: Annotated[list[str], Meta(description="files that ran instead of production's")]
    production_copied: Moment
    run: Annotated[str, Meta(description="the run of pytest that alone may use it; empty: everybody may")]
    reason: Annotated[str, Meta(description="why it can't be used; empty: it can")]


class Baselines(Report, tag="stagegbo.baselines/1"):
    """`baseline list --json`."""

    baselines: list[SavedBaseline]


class DeployedFile(Part):
    """A file in a clone that is not production's, as `status` knows it."""

    name: str
    path: str
    real: Annotated[str, Meta(description="where links at `path` lead")]
    sha256: str
    size: int
    since: Moment
    by: str
    source: str
    state: str


class Container(Part):
    """A clone."""

    name: str
    address: str
    state: Annotated[
        str,
        Meta(
            description="`ready`, `sealed`, `starting`, `failed`, `stopped`, `frozen`, `deploying`, `unfinished`, "
            "`missing` or `foreign`"
        ),
    ]
    answers: Annotated[list[str], Meta(description="port and answer of each service, for people")]
    source: Annotated[str, Meta(description="project and container in production")]
    created_at: Moment
    disk_used: Annotated[int | None, Meta(description="bytes that the clone has for itself; null: not asked for")]
    disk_limit: str
    deployed: list[DeployedFile]
    frozen_by: Annotated[str, Meta(description="the test that has it frozen; empty: none")]


class Port(Part):
    """A port of a clone that others than the host may reach."""

    container: str
    address: Annotated[str, Meta(description="of the clone")]
    port: int
    listen: Annotated[str, Meta(description="address of the host")]
    listen_port: int
    until: Annotated[int, Meta(description="seconds since the epoch")]
    complete: Annotated[bool, Meta(description="false: a run that opened or closed it was killed")]


class ExposedPort(Port):
    """A port that is exposed, or was."""

    state: Annotated[str, Meta(description="`open`, `expired` or `unfinished`")]


class Slot(Part):
    """A slot."""

    number: Annotated[
        int, Meta(description="-1: the golden copy; below that: its copies on further members of a cluster")
    ]
    project: str
    network: str
    state: Annotated[
        str,
        Meta(
            description="`running`, `stopped`, `partly running`, `unfinished` or `empty`; `away`: its member of the "
            "cluster is offline or evacuated"
        ),
    ]
    copied: Moment
    clean: Annotated[bool, Meta(description="proven to be clean, and not used since")]
    used_by: Annotated[str, Meta(description="who holds it, for people; empty: nobody")]
    member: Annotated[str, Meta(description="cluster member that it is on; empty: no cluster, or no slot")]


class Status(Report, tag="stagegbo.status/1"):
    """`status --json`; with --watch, one line whenever something has changed."""

    project: str
    exists: bool
    ready: Annotated[bool, Meta(description="every service answers, or will for whoever asks for it next")]
    network: str
    server: str
    member: Annotated[str, Meta(description="cluster member that the stage is on; empty: no cluster")]
    containers: list[Container]
    slots: list[Slot]
    exposed: list[ExposedPort]
    moved: Annotated[dict[str, str], Meta(description="by container, what may have changed in production since")]
    trouble: Annotated[str, Meta(description="what keeps the host from the whole stage; empty: nothing")]
    warnings: Annotated[list[str], Meta(description="what endangers production's pool now")]
    burdens: Annotated[list[str], Meta(description="what the pools' quotas cost production")]
    unseen: Annotated[list[str], Meta(description="pools whose quotas can't be read from here")]


class Endpoint(Part):
    """Where a service answers."""

    container: str
    protocol: Annotated[str, Meta(description="`postgresql`, `valkey`, `vault`, `s3`, `http` or `tcp`")]
    host: str
    port: int
    url: Annotated[str, Meta(description="without credentials")]


class Endpoints(Report, tag="stagegbo.endpoints/1"):
    """`endpoints --json` and `forward --json`."""

    endpoints: list[Endpoint]


class Examined(Part):
    """One thing that `doctor` looked at."""

    state: Annotated[str, Meta(description="`ok`, `warning` or `failed`")]
    subject: str
    seen: str
    remedy: str


class Doctor(Report, tag="stagegbo.doctor/1"):
    """`doctor --json`."""

    findings: list[Examined]


class Finding(Part):
    """A line of a certificate."""

    id: str
    title: str
    state: Annotated[str, Meta(description="`green`, `red` or `skipped`")]
    evidence: list[str]
    means: Annotated[str, Meta(description="what it means that it is red")]
    remedy: str


class Certificate(Part):
    """What all checks of one stage found."""

    holds: bool
    project: str
    findings: list[Finding]


class Verify(Report, Certificate, tag="stagegbo.verify/1"):
    """`verify --json`: the first stage, and `holds` for all of them."""

    slots: Annotated[dict[str, Certificate], Meta(description="the others, by number; `golden`: the golden copy")]


class Expose(Report, tag="stagegbo.expose/1"):
    """`expose --json`."""

    action: Annotated[str, Meta(description="`exposed` or `closed`; with --dry-run `would expose` or `would close`")]
    ports: list[Port]


class Lab(Report, tag="stagegbo.lab/1"):
    """`lab status --json`."""

    name: str
    running: Annotated[bool, Meta(description="the daemon answers")]
    ready: Annotated[bool, Meta(description="all of production's services work")]
    incus_version: str
    socket: str
    netns: str
    netns_file: str
    state_dir: str
    lab_dir: str
    pid: int | None
    vault_init: Annotated[str, Meta(description="file with Vault's unseal keys")]
    credentials: Annotated[str, Meta(description="file with the users and passwords of production's services")]
    production: dict[str, str]
    services: dict[str, str]
    pools: dict[str, str]
    members: dict[str, str]
