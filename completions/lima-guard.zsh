#compdef lima-guard
# made by `deno task manual`: change the tables of options in lima_guard.ts and install.ts instead

_lima_guard_instances() {
  local given=${opt_args[--lima-home]:-${LIMA_HOME:-}}
  local -a homes=($HOME/.lima $HOME/.colima/_lima $HOME/.config/colima/_lima)
  [[ -z $given ]] || homes=(${~given}(N))
  local -aU names=($^homes/*/lima.yaml(N:h:t))
  compadd -a names
}

_lima_guard() {
  local at=${words[(i)--]}
  if ((at < CURRENT)); then
    shift $at words
    ((CURRENT -= at))
    _normal
  elif ((${words[(I)(--install|--check|--uninstall)]})); then
    _arguments -s \
      '(--pre --stop --run --status --install --check --uninstall)--install[let launchd run lima-guard (these three\: --install --help)]' \
      '(--pre --stop --run --status --install --check --uninstall)--check[is the job, in its file and as loaded, still run by lima-guard?]' \
      '(--pre --stop --run --status --install --check --uninstall)--uninstall[give launchd the plist as it was before]' \
      '--all[every job that starts an instance\: root'\''s daemons, or the user'\''s login agents too]' \
      '--plist=[this plist (for Colima INSTANCE is colima or colima-PROFILE)]:FILE:_files' \
      '--guard=[use this compiled lima-guard in its place]:PATH:_files' \
      '--guard-dir=[where lima-guard is put (default\: /usr/local/libexec; login agent\: ~/.local/libexec)]:DIR:_files -/' \
      '--sign=[sign the lima-guard that is put there (codesign --sign)]:IDENTITY: ' \
      '--keep-alive[add KeepAlive {SuccessfulExit\: false} where there is no KeepAlive]' \
      '--exit-timeout=[set ExitTimeOut to just this (default\: at least 60)]:SECONDS: ' \
      '--on-event=[let the job run this program at each event]:PROGRAM: ' \
      '--no-on-event[let the job run no program at events any more]' \
      '--lima-home=[where the instance is (default\: what the plist says)]:DIR:_files -/' \
      '--start[enable and load a job that is off (otherwise it stays off)]' \
      '--restart[stop and load the job again, also where its file is as wanted (after an upgrade)]' \
      '--downgrade[replace a newer lima-guard]' \
      '--no-reload[change the file only; it counts from the next boot or login on]' \
      '--purge[--uninstall\: remove lima-guard and what it has left, once no job needs it]' \
      '--print[print the finished plist on stdout, write nothing]' \
      '(-n --dry-run)'{-n,--dry-run}'[print the changes and the commands, write nothing]' \
      '--yes[do not ask]' \
      '--json[one JSON document on stdout]' \
      '(-v --verbose)'{-v,--verbose}'[print every command, those that only look too]' \
      '(-h --help)'{-h,--help}'[print this and exit]' \
      '(-V --version)'{-V,--version}'[print the version and exit]' \
      '*:instance:_lima_guard_instances'
  else
    _arguments -s \
      '(--pre --stop --run --status --install --check --uninstall)--pre[remove what stops it from starting, and an orphaned VM; never starts it]' \
      '(--pre --stop --run --status --install --check --uninstall)--stop[stop gracefully, then hard; several at once in parallel]' \
      '(--pre --stop --run --status --install --check --uninstall)--run[--pre, then run COMMAND; on SIGTERM do --stop; exit with its status]' \
      '(--pre --stop --run --status --install --check --uninstall)--status[what lima-guard sees, why, and what it would do; changes nothing]' \
      '(--pre --stop --run --status --install --check --uninstall)--install[let launchd run lima-guard (these three\: --install --help)]' \
      '(--pre --stop --run --status --install --check --uninstall)--check[is the job, in its file and as loaded, still run by lima-guard?]' \
      '(--pre --stop --run --status --install --check --uninstall)--uninstall[give launchd the plist as it was before]' \
      '--all[with --pre, --stop, --status\: every instance (root'\''s --stop, --status\: also what users run)]' \
      '--lima-home=[where the instances are (default\: $LIMA_HOME, else all Lima homes of the user)]:DIR:_files -/' \
      '--timeout=[the time limit of a stop (default\: 60)]:SECONDS: ' \
      '--wait=[with --status\: until the VMs run and their guests are up; 75 if they do not]:SECONDS: ' \
      '--on-event=[run it at each event of --run, --pre, --stop (absolute path)]:PROGRAM: ' \
      '(-n --dry-run)'{-n,--dry-run}'[observe, plan, print, leave; exit as the real run would]' \
      '--json[one JSON document on stdout]' \
      '(-v --verbose)'{-v,--verbose}'[say more on stderr]' \
      '(-h --help)'{-h,--help}'[print this and exit]' \
      '(-V --version)'{-V,--version}'[print the version and exit]' \
      '*:instance:_lima_guard_instances'
  fi
}

if [[ $funcstack[1] = _lima-guard ]]; then _lima_guard "$@"; else compdef _lima_guard lima-guard; fi
