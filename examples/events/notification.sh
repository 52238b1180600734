#!/bin/sh
# lima-guard --on-event: shows a notification. For login agents only: a LaunchDaemon has no screen.
event=$LIMA_GUARD_EVENT
case $event in
  blocked | braked | killed | "cut off") ;;
  *) exit 0 ;;
esac
# The texts are arguments, never AppleScript source.
exec osascript -e 'on run argv' -e 'display notification (item 2 of argv) with title (item 1 of argv)' -e 'end run' \
  "$LIMA_GUARD_INSTANCE: $event" "${LIMA_GUARD_BECAUSE:-see lima-guard --status}"
