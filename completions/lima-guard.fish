# fish completion for lima-guard
# made by `deno task manual`: change the tables of options in lima_guard.ts and install.ts instead

function __lima_guard_instances
    set -l home (string replace -rf -- '^--lima-home=' '' (commandline -opc))
    set -l words (commandline -opc)
    set -l at (contains -i -- --lima-home $words); and set home $words[(math $at + 1)]
    test -n "$home"; or set home $LIMA_HOME
    if test -n "$home"
        set home (string replace -r '^~/' "$HOME/" -- $home[-1])
    else
        set home $HOME/.lima $HOME/.colima/_lima $HOME/.config/colima/_lima
    end
    for file in $home/*/lima.yaml
        string replace -r '.*/(.*)/lima.yaml$' '$1' -- $file
    end
end

function __lima_guard_at -a place
    set -l words (commandline -opc)
    if contains -- -- $words
        test $place = command
    else if string match -qr -- '^--(install|check|uninstall)$' $words
        contains -- $place install any
    else if string match -qr -- '^--(pre|stop|run|status|install|check|uninstall)$' $words
        contains -- $place own any
    else
        contains -- $place own role any
    end
end

complete -c lima-guard -f
complete -c lima-guard -n "__lima_guard_at command" -xa "(__fish_complete_subcommand --fcs-skip=(contains -i -- -- (commandline -opc)))"
complete -c lima-guard -n "__lima_guard_at any" -a "(__lima_guard_instances)" -d instance
complete -c lima-guard -n "__lima_guard_at role" -l pre -d 'remove what stops it from starting, and an orphaned VM; never starts it'
complete -c lima-guard -n "__lima_guard_at role" -l stop -d 'stop gracefully, then hard; several at once in parallel'
complete -c lima-guard -n "__lima_guard_at role" -l run -d '--pre, then run COMMAND; on SIGTERM do --stop; exit with its status'
complete -c lima-guard -n "__lima_guard_at role" -l status -d 'what lima-guard sees, why, and what it would do; changes nothing'
complete -c lima-guard -n "__lima_guard_at role" -l install -d 'let launchd run lima-guard (these three: --install --help)'
complete -c lima-guard -n "__lima_guard_at role" -l check -d 'is the job, in its file and as loaded, still run by lima-guard?'
complete -c lima-guard -n "__lima_guard_at role" -l uninstall -d 'give launchd the plist as it was before'
complete -c lima-guard -n "__lima_guard_at own" -l all -d 'with --pre, --stop, --status: every instance (root\'s --stop, --status: also what users run)'
complete -c lima-guard -n "__lima_guard_at own" -l lima-home -xa "(__fish_complete_directories)" -d 'where the instances are (default: $LIMA_HOME, else all Lima homes of the user)'
complete -c lima-guard -n "__lima_guard_at own" -l timeout -x -d 'the time limit of a stop (default: 60)'
complete -c lima-guard -n "__lima_guard_at own" -l wait -x -d 'with --status: until the VMs run and their guests are up; 75 if they do not'
complete -c lima-guard -n "__lima_guard_at own" -l on-event -x -d 'run it at each event of --run, --pre, --stop (absolute path)'
complete -c lima-guard -n "__lima_guard_at own" -s n -l dry-run -d 'observe, plan, print, leave; exit as the real run would'
complete -c lima-guard -n "__lima_guard_at own" -l json -d 'one JSON document on stdout'
complete -c lima-guard -n "__lima_guard_at own" -s v -l verbose -d 'say more on stderr'
complete -c lima-guard -n "__lima_guard_at own" -s h -l help -d 'print this and exit'
complete -c lima-guard -n "__lima_guard_at own" -s V -l version -d 'print the version and exit'
complete -c lima-guard -n "__lima_guard_at install" -l all -d 'every job that starts an instance: root\'s daemons, or the user\'s login agents too'
complete -c lima-guard -n "__lima_guard_at install" -l plist -rF -d 'this plist (for Colima INSTANCE is colima or colima-PROFILE)'
complete -c lima-guard -n "__lima_guard_at install" -l guard -rF -d 'use this compiled lima-guard in its place'
complete -c lima-guard -n "__lima_guard_at install" -l guard-dir -xa "(__fish_complete_directories)" -d 'where lima-guard is put (default: /usr/local/libexec; login agent: ~/.local/libexec)'
complete -c lima-guard -n "__lima_guard_at install" -l sign -x -d 'sign the lima-guard that is put there (codesign --sign)'
complete -c lima-guard -n "__lima_guard_at install" -l keep-alive -d 'add KeepAlive {SuccessfulExit: false} where there is no KeepAlive'
complete -c lima-guard -n "__lima_guard_at install" -l exit-timeout -x -d 'set ExitTimeOut to just this (default: at least 60)'
complete -c lima-guard -n "__lima_guard_at install" -l on-event -x -d 'let the job run this program at each event'
complete -c lima-guard -n "__lima_guard_at install" -l no-on-event -d 'let the job run no program at events any more'
complete -c lima-guard -n "__lima_guard_at install" -l lima-home -xa "(__fish_complete_directories)" -d 'where the instance is (default: what the plist says)'
complete -c lima-guard -n "__lima_guard_at install" -l start -d 'enable and load a job that is off (otherwise it stays off)'
complete -c lima-guard -n "__lima_guard_at install" -l restart -d 'stop and load the job again, also where its file is as wanted (after an upgrade)'
complete -c lima-guard -n "__lima_guard_at install" -l downgrade -d 'replace a newer lima-guard'
complete -c lima-guard -n "__lima_guard_at install" -l no-reload -d 'change the file only; it counts from the next boot or login on'
complete -c lima-guard -n "__lima_guard_at install" -l purge -d '--uninstall: remove lima-guard and what it has left, once no job needs it'
complete -c lima-guard -n "__lima_guard_at install" -l print -d 'print the finished plist on stdout, write nothing'
complete -c lima-guard -n "__lima_guard_at install" -s n -l dry-run -d 'print the changes and the commands, write nothing'
complete -c lima-guard -n "__lima_guard_at install" -l yes -d 'do not ask'
complete -c lima-guard -n "__lima_guard_at install" -l json -d 'one JSON document on stdout'
complete -c lima-guard -n "__lima_guard_at install" -s v -l verbose -d 'print every command, those that only look too'
complete -c lima-guard -n "__lima_guard_at install" -s h -l help -d 'print this and exit'
complete -c lima-guard -n "__lima_guard_at install" -s V -l version -d 'print the version and exit'
