#!/bin/sh
# lima-guard --on-event: one line in the system's log.
# Not yet verified on macOS. Read it there with: log show --last 1d --predicate 'process == "logger" && eventMessage CONTAINS "lima-guard"'
event=$LIMA_GUARD_EVENT
exec logger -t lima-guard -p user.notice -- "lima-guard: $LIMA_GUARD_INSTANCE: $event" \
  "status=${LIMA_GUARD_STATUS:-} stage=${LIMA_GUARD_STAGE:-} seconds=${LIMA_GUARD_SECONDS:-} ${LIMA_GUARD_BECAUSE:-}"
