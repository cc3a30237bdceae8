"""Examples of each command, for its help. Tests parse them."""

from __future__ import annotations

__all__ = ["EXAMPLES"]

EXAMPLES = {
    "init": ("stagegbo init --dry-run", "stagegbo init --yes"),
    "provision": (
        "stagegbo provision --dry-run           # every step, and none is taken",
        "stagegbo provision                     # make what is missing",
        "stagegbo provision --refresh tables    # copy tables from production again",
        "stagegbo provision --slots auto        # as many stages as fit",
    ),
    "reset": ("stagegbo reset cache drive", "stagegbo reset all"),
    "destroy": ("stagegbo destroy --dry-run", "stagegbo destroy --yes"),
    "deploy": (
        "stagegbo deploy system botserver=target/release/botserver",
        "stagegbo deploy --list",
        "stagegbo deploy --undo system",
    ),
    "baseline": (
        "stagegbo baseline save demo-data",
        "stagegbo baseline use demo-data",
        "stagegbo baseline list",
    ),
    "capsule": ("stagegbo capsule list",),
    "status": (
        "stagegbo status",
        "stagegbo status --watch                # until Ctrl-C",
        "stagegbo status --json | jq .ready",
    ),
    "wait": (
        "stagegbo wait --timeout 3m             # until every service answers",
        "stagegbo wait --for free               # until nobody uses the stage",
        "stagegbo wait cache tables",
    ),
    "endpoints": ("stagegbo endpoints", "stagegbo endpoints --json"),
    "doctor": ("stagegbo doctor", "stagegbo --endpoint https://incus.example:8443 doctor"),
    "explain": ("stagegbo explain SG300", "stagegbo explain"),
    "report": ("stagegbo report DIR",),
    "release": ("stagegbo release", "stagegbo release --force                # the host that has it is dead"),
    "env": (
        "stagegbo env                           # credentials as ***",
        "stagegbo env --secrets -o stage.env    # then: set -a; . ./stage.env",
        "stagegbo env --secrets --format docker -o stage.env",
        "stagegbo env DATABASE_URL cache",
    ),
    "verify": ("stagegbo verify", "stagegbo verify --check reach.internet"),
    "expose": (
        "stagegbo expose system:5858 --listen 198.51.100.7:8443 --for 2h",
        "stagegbo expose --close",
    ),
    "run": (
        "stagegbo run -- cargo test",
        "stagegbo run --reset cache,drive -- npm test",
        "stagegbo run --slot auto --baseline demo-data -- ./smoke.sh",
    ),
    "connect": (
        "stagegbo connect tables",
        "stagegbo connect tables -- -c 'SELECT count(*) FROM users'",
    ),
    "forward": ("stagegbo forward", "stagegbo forward tables --port tables=15432"),
    "exec": (
        "stagegbo exec cache -- systemctl status valkey",
        "stagegbo exec --user gbuser --cwd /opt/gbo system -- ls -l",
    ),
    "shell": ("stagegbo shell system",),
    "logs": (
        "stagegbo logs system -n 50",
        "stagegbo logs system tables --since 10m --grep ERROR",
        "stagegbo logs -f system",
    ),
    "completion": (
        "stagegbo completion bash >~/.local/share/bash-completion/completions/stagegbo",
        "stagegbo completion zsh >~/.zfunc/_stagegbo",
        "stagegbo completion fish >~/.config/fish/completions/stagegbo.fish",
    ),
    "lab": ("stagegbo lab up", "stagegbo --lab provision", "stagegbo lab down"),
    "lab up": ("stagegbo lab up", "stagegbo lab up --members 3"),
    "lab status": ("stagegbo lab status",),
    "lab exec": ("stagegbo lab exec -- incus list --all-projects",),
    "lab member": ("stagegbo lab member cut member2",),
    "lab down": ("stagegbo lab down", "stagegbo lab down --purge"),
}
"""By command. What comes behind a `#` says what it does."""
