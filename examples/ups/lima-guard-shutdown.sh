#!/bin/sh
# Stops every Lima VM of this Mac, then shuts the Mac down. For apcupsd (doshutdown) and NUT (SHUTDOWNCMD), as root.
# A stop that fails or hangs never keeps the Mac up: the shutdown follows after 75 s at the latest.
stop_s=60
wait_s=75

for program in /usr/local/libexec/lima-guard /Library/PrivilegedHelperTools/lima-guard /usr/local/bin/lima-guard; do
  if [ -x "$program" ]; then break; fi
done
"$program" --stop --all --timeout "$stop_s" </dev/null &
stop=$!
while [ "$wait_s" -gt 0 ] && kill -0 "$stop" 2>/dev/null; do
  sleep 1
  wait_s=$((wait_s - 1))
done
exec /sbin/shutdown -h now
