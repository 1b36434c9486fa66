#!/usr/bin/env bash
# Exits 0 where network namespaces, links and filters can be made, as tests/cluster/test_partitions.py does: found by making one of each.
set -euo pipefail
name=dynamo-probe-$$
ip netns add "$name"
trap 'ip netns delete "$name"' EXIT
ip -n "$name" link add bridge type bridge
ip -n "$name" link add one type veth peer name other
ip netns exec "$name" iptables -w -A INPUT -s 192.0.2.1 -j DROP
