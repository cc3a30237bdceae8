#!/usr/bin/env bash
# Stage set up by hand, as General Bots' operations documents publish it, for provision.py to be measured against.
#
# Make project, network and profile; `incus copy` one container after another; then for each one: start, sleep 3,
# write the interfaces file, empty the logs, wipe, restart. Changed only where it can't run; each change says "Mended".
#
# Environment: PROJECT, BRIDGE, SUBNET (the first three numbers, 10.0.4), POOL. Standard input: Vault's unseal keys.
set -euo pipefail
mapfile -t keys

containers=(system tables vault cache drive llm)
declare -A last=([system]=10 [tables]=11 [vault]=12 [cache]=13 [drive]=14 [llm]=15)
declare -A wipe=([system]='rm -rf /opt/gbo/work/*' [cache]='rm -f /opt/gbo/data/valkey/*.rdb /opt/gbo/data/valkey/*.aof'
  [drive]='rm -rf /opt/gbo/data/minio/*')

# Mended: servers since 7.0.2 refuse features.networks=true without OVN.
incus project create "$PROJECT" -c features.networks=true -c features.profiles=true ||
  incus project create "$PROJECT" -c features.networks=false -c features.profiles=true
# Mended: Incus has bridges in project default only.
incus network create "$BRIDGE" --project default --type bridge \
  ipv4.address="$SUBNET.1/24" ipv4.nat=true ipv6.address=none
incus profile device add default root disk path=/ pool="$POOL" size=10GB --project "$PROJECT"
# Mended: `network=` is looked up in the project, which has no bridge.
incus profile device add default eth0 nic nictype=bridged parent="$BRIDGE" --project "$PROJECT"

for name in "${containers[@]}"; do
  incus copy "$name" "$name" --project default --target-project "$PROJECT"
done

for name in "${containers[@]}"; do
  incus start "$name" --project "$PROJECT"
  sleep 3
  incus exec "$name" --project "$PROJECT" -- tee /etc/network/interfaces >/dev/null <<END
auto lo
iface lo inet loopback

auto eth0
iface eth0 inet static
    address $SUBNET.${last[$name]}
    netmask 255.255.255.0
    gateway $SUBNET.1
    dns-nameservers 8.8.8.8 8.8.4.4
END
  # Mended: `rm -rf /opt/gbo/logs/*` takes the log folders too, and services do not start without theirs.
  incus exec "$name" --project "$PROJECT" -- find /opt/gbo/logs -type f -delete </dev/null
  if [[ -n ${wipe[$name]:-} ]]; then
    incus exec "$name" --project "$PROJECT" -- sh -c "${wipe[$name]}" </dev/null
  fi
  incus restart "$name" --project "$PROJECT"
done

# Mended: Vault comes up sealed. By now it has been up for longer than it takes to listen, but for very slow machines.
vault=(incus exec vault --project "$PROJECT" -- env VAULT_ADDR=http://127.0.0.1:8200 /opt/gbo/bin/vault)
for _ in {1..300}; do
  code=0
  "${vault[@]}" status </dev/null >/dev/null 2>&1 || code=$?
  [[ $code == 1 ]] || break # 0 is open, 2 is sealed, 1 is no answer
  sleep 0.1
done
for key in "${keys[@]}"; do
  printf '%s' "$key" | "${vault[@]}" write sys/unseal key=- >/dev/null
done
