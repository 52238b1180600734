/**
 * `deno task manual`: writes the completions for bash, zsh and fish and the man page, all from the two tables of options
 * that `--help` is made from. A test holds the committed files against it.
 *
 * Instance names are the folders of LIMA_HOME (without one: of Lima's and Colima's homes) that hold a lima.yaml: limactl
 * is not asked, it takes half a second and removes PID files on the way. The bash that macOS ships is 3.2, so no mapfile and no associative arrays.
 * @module
 */

import { DEFAULT_BUDGET_S, EXIT, OPTIONS, VERSION, worst } from "../lima_guard.ts";
import { INSTALL_OPTIONS } from "../install.ts";
import { pictureFiles } from "./pictures.ts";
import { schemaFiles } from "./schema.ts";

interface Option {
  readonly flag: string;
  readonly short?: string;
  readonly argument?: string;
  readonly text: string;
}

const GUARD: readonly Option[] = OPTIONS;
const INSTALL: readonly Option[] = INSTALL_OPTIONS;
const MADE = "made by `deno task manual`: change the tables of options in lima_guard.ts and install.ts instead";

/** A role takes instances; they are positionals, not its value. */
const isRole = ({ argument }: Option) => argument?.includes("INSTANCE") ?? false;
const hasValue = (option: Option) => option.argument !== undefined && !isRole(option);
const ROLES = GUARD.filter(isRole).map(({ flag }) => flag);
/** The roles that have their options in install.ts. */
const INSTALL_ROLES = ROLES.filter((role) => INSTALL.some(({ flag }) => flag === role));
/** What fits beside a role: the others do not. */
const GUARD_FLAGS = GUARD.filter((o) => !isRole(o));
const INSTALL_FLAGS = INSTALL.filter(({ flag }) => !INSTALL_ROLES.includes(flag));

const dashed = (flags: readonly string[], between: string) => flags.map((flag) => `--${flag}`).join(between);
const words = (options: readonly Option[]) =>
  options.flatMap(({ flag, short }) => [...short ? [`-${short}`] : [], `--${flag}`]).join(" ");
/** The options whose value is one of these. */
const valued = (
  ...kinds: string[]
) => [
  ...new Set([...GUARD, ...INSTALL].filter((o) => hasValue(o) && kinds.includes(o.argument ?? "")).map((o) => o.flag)),
];
const FOLDERS = valued("DIR");
const FILES = valued("FILE", "PATH");
const OTHERS = [...new Set([...GUARD, ...INSTALL].filter(hasValue).map((o) => o.flag))]
  .filter((flag) => !FOLDERS.includes(flag) && !FILES.includes(flag));

/** Where instances are looked for without --lima-home and LIMA_HOME, below HOME. */
const HOMES = [".lima", ".colima/_lima", ".config/colima/_lima"];

// ─────────────────────────────────────────────────────────────────────────────────────────── bash ──

function bash(): string {
  return `# bash completion for lima-guard (bash 3.2 or later)
# shellcheck disable=SC2207 # mapfile is not in bash 3.2, and no name has a blank
# ${MADE}

_lima_guard_instances() {
  local given=\${1:-\${LIMA_HOME:-}} home file
  local -a homes
  homes=(${HOMES.map((home) => `"$HOME/${home}"`).join(" ")})
  [[ -z $given ]] || homes=("\${given/#\\~\\//$HOME/}")
  for home in "\${homes[@]}"; do
    for file in "$home"/*/lima.yaml; do
      [[ -f $file ]] || continue
      file=\${file%/lima.yaml}
      printf '%s\\n' "\${file##*/}"
    done
  done
}

_lima_guard() {
  local IFS=$' \\t\\n' cur=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD - 1]} home='' role='' rest='' files='' i
  # \`--flag=value\` arrives as three words.
  if [[ $cur = '=' ]]; then
    cur=''
  elif [[ $before = '=' ]] && ((COMP_CWORD > 1)); then
    before=\${COMP_WORDS[COMP_CWORD - 2]}
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    case \${COMP_WORDS[i]} in
      --) rest=$((COMP_CWORD - i)) && break ;;
      --lima-home)
        home=\${COMP_WORDS[i + 1]}
        [[ $home != '=' ]] || home=\${COMP_WORDS[i + 2]}
        ;;
      ${dashed(INSTALL_ROLES, "|")}) role=install ;;
      ${dashed(ROLES.filter((role) => !INSTALL_ROLES.includes(role)), "|")}) role=own ;;
    esac
  done
  COMPREPLY=()
  if [[ -n $rest ]]; then
    IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    if [[ $rest = 1 ]]; then COMPREPLY=($(compgen -c -- "$cur")); else COMPREPLY=($(compgen -f -- "$cur")); fi
    return
  fi
  case $before in
    ${dashed(FOLDERS, "|")}) files=-d ;;
    ${dashed(FILES, "|")}) files=-f ;;
    ${dashed(OTHERS, "|")}) return ;;
  esac
  if [[ -n $files ]]; then
    IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$files" -- "$cur"))
    return
  fi
  case $cur,$role in
    -*,install) COMPREPLY=($(compgen -W '${words(INSTALL_FLAGS)}' -- "$cur")) ;;
    -*,own) COMPREPLY=($(compgen -W '${words(GUARD_FLAGS)}' -- "$cur")) ;;
    -*) COMPREPLY=($(compgen -W '${words(GUARD)}' -- "$cur")) ;;
    *) COMPREPLY=($(compgen -W "$(_lima_guard_instances "$home")" -- "$cur")) ;;
  esac
}

complete -F _lima_guard lima-guard
`;
}

// ──────────────────────────────────────────────────────────────────────────────────────────── zsh ──

const ZSH_VALUES: Record<string, string> = { DIR: "_files -/", FILE: "_files", PATH: "_files" };

/** `'--flag=[text]:SECONDS: '`, as _arguments wants it. Only one role goes with an invocation. */
function zshSpec(option: Option): string {
  const { flag, short, argument = "" } = option;
  const text = option.text.replaceAll("'", "'\\''").replaceAll(/[[\]:]/g, "\\$&");
  const value = hasValue(option) ? `:${argument}:${ZSH_VALUES[argument] ?? " "}` : "";
  if (isRole(option)) return `'(${dashed(ROLES, " ")})--${flag}[${text}]'`;
  return short
    ? `'(-${short} --${flag})'{-${short},--${flag}}'[${text}]'`
    : `'--${flag}${value && "="}[${text}]${value}'`;
}

function zsh(): string {
  const specs = (options: readonly Option[]) => options.map((o) => `      ${zshSpec(o)} \\`).join("\n");
  return `#compdef lima-guard
# ${MADE}

_lima_guard_instances() {
  local given=\${opt_args[--lima-home]:-\${LIMA_HOME:-}}
  local -a homes=(${HOMES.map((home) => `$HOME/${home}`).join(" ")})
  [[ -z $given ]] || homes=(\${~given}(N))
  local -aU names=($^homes/*/lima.yaml(N:h:t))
  compadd -a names
}

_lima_guard() {
  local at=\${words[(i)--]}
  if ((at < CURRENT)); then
    shift $at words
    ((CURRENT -= at))
    _normal
  elif ((\${words[(I)(${dashed(INSTALL_ROLES, "|")})]})); then
    _arguments -s \\
${specs([...GUARD.filter(({ flag }) => INSTALL_ROLES.includes(flag)), ...INSTALL_FLAGS])}
      '*:instance:_lima_guard_instances'
  else
    _arguments -s \\
${specs(GUARD)}
      '*:instance:_lima_guard_instances'
  fi
}

if [[ $funcstack[1] = _lima-guard ]]; then _lima_guard "$@"; else compdef _lima_guard lima-guard; fi
`;
}

// ─────────────────────────────────────────────────────────────────────────────────────────── fish ──

const FISH_VALUES: Record<string, string> = { DIR: `-xa "(__fish_complete_directories)"`, FILE: "-rF", PATH: "-rF" };

function fish(): string {
  const line = (option: Option, condition: string) => {
    const { flag, short, argument = "" } = option;
    const text = option.text.replaceAll(/['\\]/g, "\\$&");
    const value = hasValue(option) ? ` ${FISH_VALUES[argument] ?? "-x"}` : "";
    const name = `${short ? `-s ${short} ` : ""}-l ${flag}`;
    return `complete -c lima-guard -n "${condition}" ${name}${value} -d '${text}'`;
  };
  const seen = (roles: readonly string[]) => `string match -qr -- '^--(${roles.join("|")})$' $words`;
  return `# fish completion for lima-guard
# ${MADE}

function __lima_guard_instances
    set -l home (string replace -rf -- '^--lima-home=' '' (commandline -opc))
    set -l words (commandline -opc)
    set -l at (contains -i -- --lima-home $words); and set home $words[(math $at + 1)]
    test -n "$home"; or set home $LIMA_HOME
    if test -n "$home"
        set home (string replace -r '^~/' "$HOME/" -- $home[-1])
    else
        set home ${HOMES.map((home) => `$HOME/${home}`).join(" ")}
    end
    for file in $home/*/lima.yaml
        string replace -r '.*/(.*)/lima.yaml$' '$1' -- $file
    end
end

function __lima_guard_at -a place
    set -l words (commandline -opc)
    if contains -- -- $words
        test $place = command
    else if ${seen(INSTALL_ROLES)}
        contains -- $place install any
    else if ${seen(ROLES)}
        contains -- $place own any
    else
        contains -- $place own role any
    end
end

complete -c lima-guard -f
complete -c lima-guard -n "__lima_guard_at command" -xa "(__fish_complete_subcommand --fcs-skip=(contains -i -- -- (commandline -opc)))"
complete -c lima-guard -n "__lima_guard_at any" -a "(__lima_guard_instances)" -d instance
${GUARD.filter(isRole).map((o) => line(o, "__lima_guard_at role")).join("\n")}
${GUARD_FLAGS.map((o) => line(o, "__lima_guard_at own")).join("\n")}
${INSTALL_FLAGS.map((o) => line(o, "__lima_guard_at install")).join("\n")}
`;
}

// ──────────────────────────────────────────────────────────────────────────────────────── man page ──

/** mdoc(7), which both mandoc (macOS, the BSDs) and groff read. */
const DATE = "November 23, 2026";

const STATUSES: Record<keyof typeof EXIT, string> = {
  done: "Done, or nothing to do. Killing at the end of a stop is a warning, and 0.",
  failed: "A step failed. For --status: something needs a person. For --install: refused, or failed and put back.",
  usage: "Usage; nothing was touched.",
  noInstance: "No such instance (no readable lima.yaml), or no such launchd job.",
  tryAgain: "Could not find out, or another lima-guard is using it: try again.",
  denied: "Not permitted.",
};

/** In the order in which the statuses of several instances count. */
const WORST_FIRST = Object.values(EXIT).sort((a, b) => a === b ? 0 : worst([a, b]) === a ? -1 : 1).join(", ");

/** A line for each sentence; backslashes and a leading dot or quote would be taken for commands. */
const roff = (text: string) =>
  text.replaceAll(". ", ".\n").replaceAll("\\", "\\e").replaceAll("…", "...").replaceAll(/(^|\s)-/g, "$1\\-").replace(
    /^([.'])/,
    "\\&$1",
  );

function mdocOption(option: Option): string {
  const { flag, short, argument } = option;
  const value = (argument ?? "").replaceAll(/[[\]…]/g, "").split(" ")[0];
  const many = argument?.includes("…") ? " ..." : "";
  const names = `${short ? `${short} , ` : ""}\\-${flag}`;
  const shown = argument?.startsWith("[") ? ` Op Ar ${value}${many}` : value ? ` Ar ${value}${many}` : "";
  const command = argument?.includes(" -- ") ? " Fl \\- Ar command ..." : "";
  return `.It Fl ${short ? names.replace(" , ", " , Fl ") : names}${
    shown.replace(" ...", command ? "" : " ...")
  }${command}\n${roff(option.text)}`;
}

function manPage(): string {
  const statuses = (Object.keys(EXIT) as (keyof typeof EXIT)[]).map((name) =>
    `.It ${EXIT[name]}\n${roff(STATUSES[name])}`
  );
  return `.\\" ${MADE.replaceAll("`", "")}
.Dd ${DATE}
.Dt LIMA-GUARD 1
.Os lima-guard ${VERSION}
.Sh NAME
.Nm lima-guard
.Nd start and stop Lima instances without harm to other programs
.Sh SYNOPSIS
.Nm
.Fl \\-pre Ar instance ... | Fl \\-pre \\-all
.Nm
.Fl \\-stop Ar instance ... | Fl \\-stop \\-all
.Nm
.Fl \\-run Ar instance Fl \\- Ar command ...
.Nm
.Fl \\-status Op Ar instance ...
.Nm
.Fl \\-install | \\-check | \\-uninstall Ar instance ... | Fl \\-all
.Sh DESCRIPTION
.Nm
stands between launchd and Lima.
It removes what an ended run of an instance left behind, stops instances gracefully and then by force within one time
limit, and lets the launchd job run it, so that both happen by themselves.
.Pp
A PID file is believed only with proof: the process belongs to the owner of the instance, and its command line is one of
Lima's and names this instance's own files.
A PID without that proof is never signalled.
What could not be found out permits nothing and is no success.
.Pp
.Fl \\-dry-run
prints what would happen and changes nothing; its exit status is that of the real run.
.Sh OPTIONS
.Bl -tag -width Ds
${GUARD.map(mdocOption).join("\n")}
.El
.Ss With \\-\\-install, \\-\\-check and \\-\\-uninstall
.Bl -tag -width Ds
${INSTALL_FLAGS.map(mdocOption).join("\n")}
.El
.Sh ENVIRONMENT
.Bl -tag -width Ds
.It Ev LIMA_HOME
Where the instances are, unless
.Fl \\-lima-home
says otherwise.
If neither is set: ~/.lima, then the homes of Colima, Rancher Desktop and Finch.
.It Ev XPC_SERVICE_NAME
Set by launchd: the label of the job.
The time limit of
.Fl \\-run
is then what launchd gives for a stop, instead of ${DEFAULT_BUDGET_S} seconds.
.It Ev COLIMA_HOME , XDG_CONFIG_HOME
Where Colima has its instances.
.It Ev HOME
Where ~/.lima and the other homes are.
.It Ev PATH
The command of
.Fl \\-run
gets it with /opt/homebrew/bin and /usr/local/bin added.
.El
.Pp
The program of
.Fl \\-on-event
gets these:
.Bl -tag -width Ds
.It Ev LIMA_GUARD_EVENT , LIMA_GUARD_INSTANCE , LIMA_GUARD_HOME
What has happened, the name of the instance and its LIMA_HOME.
.It Ev LIMA_GUARD_BECAUSE
Why something was repaired, or why a start is blocked or has to wait.
.It Ev LIMA_GUARD_STATUS , LIMA_GUARD_STAGE , LIMA_GUARD_SECONDS
The exit status, the stage that ended a stop, and its seconds in all; else those of the start, or of the wait.
.El
.Sh FILES
.Bl -tag -width Ds
.It Pa LIMA_HOME/INSTANCE/lima-guard.jsonl , lima-guard.1.jsonl
The journal, one JSON object a line; rotated at 1 MiB.
.It Pa LIMA_HOME/INSTANCE/lima-guard.lock
One lima-guard works on an instance, never two.
.It Pa LIMA_HOME/INSTANCE/lima-guard.previous/
The ends of Lima's logs of a run that ended badly.
.It Pa LIMA_HOME/_lima-guard/start.lock
Instances of one LIMA_HOME start one after another.
.It Pa /Library/LaunchDaemons/io.lima-vm.daemon.INSTANCE.plist
.It Pa ~/Library/LaunchAgents/io.lima-vm.autostart.INSTANCE.plist
Lima's launchd jobs.
Beside it,
.Fl \\-install
keeps the old one with the suffix
.Pa .before-lima-guard
and the options of the last install with the suffix
.Pa .lima-guard.json .
.It Pa /usr/local/libexec/lima-guard , /Library/PrivilegedHelperTools/lima-guard , ~/.local/libexec/lima-guard
The copy that launchd runs; the one before it is
.Pa lima-guard.previous .
.It Pa /var/log/lima-guard-install.log , ~/Library/Logs/lima-guard-install.log
A line for each job that an install changed.
.It Pa /var/db/lima-guard-install.lock , ~/.lima-guard-install.lock
One install at a time.
.It Pa ~/Library/Logs/lima-guard/
The logs of the job of an instance on another volume.
.El
.Sh SIGNALS
.Fl \\-run
stops its instance at the first SIGTERM, SIGINT or SIGHUP.
Elsewhere than under launchd, a further SIGTERM or SIGINT at least a second later skips to the next stage; for
.Fl \\-stop
the first one does so already.
A SIGHUP does not end a stop.
.Sh EXIT STATUS
.Bl -tag -width Ds
${statuses.join("\n")}
.El
.Pp
Of several instances the worst status is returned: ${WORST_FIRST}.
.Fl \\-run
leaves with the status of the command, 128 + n if signal n ended it, 126 and 127 as a shell does, and 0 after a
requested stop that succeeded.
.Sh EXAMPLES
See what is there and what would be done:
.Dl lima-guard \\-\\-status
.Dl lima-guard \\-\\-pre \\-\\-dry-run default
.Pp
Let launchd run lima-guard, look whether it does, and undo it:
.Dl lima-guard \\-\\-install default
.Dl lima-guard \\-\\-check default
.Dl lima-guard \\-\\-uninstall default
.Pp
Reboot a Mac; a stop that fails must not prevent it:
.Dl lima-guard \\-\\-stop \\-\\-all; sudo shutdown \\-r now
.Pp
From a UPS, which runs as root: the VMs of every user of this Mac:
.Dl /usr/local/bin/lima-guard \\-\\-stop \\-\\-all; /sbin/shutdown \\-h now
.Sh SEE ALSO
.Xr launchctl 1 ,
.Xr limactl 1 ,
.Xr launchd.plist 5
`;
}

/** Every file that is made, by its place in the repository. */
export function manual(): Record<string, string> {
  return {
    "completions/lima-guard.bash": bash(),
    "completions/lima-guard.zsh": zsh(),
    "completions/lima-guard.fish": fish(),
    "man/lima-guard.1": manPage(),
  };
}

if (import.meta.main) {
  const root = new URL("../", import.meta.url);
  for (const [file, text] of Object.entries({ ...manual(), ...schemaFiles(), ...pictureFiles() })) {
    Deno.mkdirSync(new URL("./", new URL(file, root)), { recursive: true });
    Deno.writeTextFileSync(new URL(file, root), text);
  }
}
