#!/bin/sh
# Writes lima-guard's view of each instance for node_exporter's textfile collector. Needs jq. Run it as the user that the
# instances belong to, every few minutes, for example from cron: */5 * * * * /path/to/lima-guard.prom.sh FOLDER
# FOLDER is what --collector.textfile.directory of node_exporter names; the user must be able to write there.
set -u
# cron's own is short.
PATH=$PATH:/usr/local/bin:/usr/local/libexec:/opt/homebrew/bin
folder=${1:?usage: lima-guard.prom.sh FOLDER}
new=$(mktemp "$folder/.lima-guard.XXXXXX") || exit 1
trap 'rm -f "$new"' EXIT

lima-guard --status --json 2>/dev/null | jq -r '
  def quoted: tojson;
  (.instances[] | "{instance=\(.name | quoted)" as $i |
    "lima_guard_status\($i)} \(.status)",
    "lima_guard_state\($i),state=\(.state | quoted)} 1",
    "lima_guard_last_stop\($i),kind=\(.lastStopKind // "unknown" | quoted)} 1",
    "lima_guard_restart_backoff_seconds\($i)} \(.brakeSeconds)",
    "lima_guard_jobs\($i)} \(.jobs | length)"),
  "lima_guard_instances \(.instances | length)",
  "lima_guard_answered 1"' >"$new" 2>/dev/null && [ -s "$new" ] || echo 'lima_guard_answered 0' >"$new"

# node_exporter reads only names that end with .prom: it never sees half a file.
chmod 644 "$new" && mv -f "$new" "$folder/lima-guard.prom"
