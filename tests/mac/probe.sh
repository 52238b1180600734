#!/bin/sh
# What a launchd job lives through at a shutdown: probe.sh FOLDER NAME
# FOLDER is on the boot volume. Label and domain of the job are asked for by PROBE_TARGET.
# Writes a line "SECONDS WHO WHAT" into FOLDER/NAME.log for whatever it sees, and one for each second after SIGTERM, until
# it is killed. A child in its own group and one in a group apart tell who gets a signal, and when.
log=$1/$2.log who=${3:-main}
say() { echo "$(date +%s) $*" >>"$log" && sync; }
if [ "$who" != main ]; then
  trap 'say "$who" TERM' TERM HUP INT
  say "$who" start
  # It stays a little longer than the main process: launchd may have something to say to the group then.
  while kill -0 "$PPID" 2>/dev/null; do sleep 1; done
  sleep 2
  exit
fi
stopping() {
  trap '' TERM HUP INT
  say main TERM
  say main who "$(who | tr '\n' ' ')"
  # Does the directory of users answer, and launchd? The status, and after how many seconds.
  asked() {
    from=$(date +%s)
    "$@" >/dev/null 2>&1
    status=$?
    echo "status $status after $(($(date +%s) - from)) s"
  }
  { say directory "$(asked /usr/bin/id -P "$(id -u)")"; } &
  { say session "$(asked launchctl print "gui/${PROBE_UID:-$(id -u)}")"; } &
  [ -z "${PROBE_TARGET:-}" ] || { say job "$(asked launchctl print "$PROBE_TARGET")"; } &
  # Can ssh start, and can this machine still reach itself? Both answers are words of ssh's own.
  { say ssh "$(ssh -o BatchMode=yes -o ConnectTimeout=2 -p 1 127.0.0.1 true 2>&1 | tr '\n' ' ')"; } &
  while :; do
    say main alive
    sleep 1
  done
}
say main start
# The same mark at two starts: it was a logout, and no boot.
say main boot "$(/usr/sbin/sysctl -n kern.bootsessionuuid 2>/dev/null || echo unknown)"
/bin/sh "$0" "$1" "$2" group &
/usr/bin/perl -e 'setpgrp 0, 0; exec @ARGV' /bin/sh "$0" "$1" "$2" apart &
trap stopping TERM
while :; do
  sleep 1 &
  wait $!
done
