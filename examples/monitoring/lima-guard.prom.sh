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

# All lines of a metric stand together, below its HELP and TYPE: that is the rule of the format.
lima-guard --status --json 2>/dev/null | jq -r '
  def metric(name; help; lines): "# HELP \(name) \(help)", "# TYPE \(name) gauge", (lines | "\(name)\(.)");
  # A value that is not known has no line.
  def each(value): .instances[] | select(value | endswith(" null") | not) |
    "{lima_instance=\(.name | tojson),home=\(.home // "" | tojson)\(value)";
  metric("lima_guard_answered"; "1 if lima-guard has answered."; " 1"),
  metric("lima_guard_instances"; "Instances that were found."; " \(.instances | length)"),
  metric("lima_guard_status"; "Exit status for the instance; not 0: a person is needed."; each("} \(.status)")),
  metric("lima_guard_state"; "The state is a label."; each(",state=\(.state | tojson)} 1")),
  metric("lima_guard_last_stop"; "How the last stop went is a label.";
    each(",kind=\(.lastStopKind // "unknown" | tojson)} 1")),
  metric("lima_guard_restart_backoff_seconds"; "Wait before the next start; the start fails again and again.";
    each("} \(.brakeSeconds)")),
  metric("lima_guard_jobs"; "Jobs of launchd that start the instance."; each("} \(.jobs // [] | length)")),
  metric("lima_guard_jobs_guarded"; "Those of them that run lima-guard.";
    each("} \([.jobs[]? | select(.wrapped)] | length)"))' >"$new" 2>/dev/null && [ -s "$new" ] || printf '%s\n' \
  '# HELP lima_guard_answered 1 if lima-guard has answered.' '# TYPE lima_guard_answered gauge' \
  'lima_guard_answered 0' >"$new"

# node_exporter reads only names that end with .prom: it never sees half a file.
chmod 644 "$new" && mv -f "$new" "$folder/lima-guard.prom"
