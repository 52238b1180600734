# bash completion for lima-guard (bash 3.2 or later)
# shellcheck disable=SC2207 # mapfile is not in bash 3.2, and no name has a blank
# made by `deno task manual`: change the tables of options in lima_guard.ts and install.ts instead

_lima_guard_instances() {
  local given=${1:-${LIMA_HOME:-}} home file
  local -a homes
  homes=("$HOME/.lima" "$HOME/.colima/_lima" "$HOME/.config/colima/_lima")
  [[ -z $given ]] || homes=("${given/#\~\//$HOME/}")
  for home in "${homes[@]}"; do
    for file in "$home"/*/lima.yaml; do
      [[ -f $file ]] || continue
      file=${file%/lima.yaml}
      printf '%s\n' "${file##*/}"
    done
  done
}

_lima_guard() {
  local IFS=$' \t\n' cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} home='' role='' rest='' files='' i
  # `--flag=value` arrives as three words.
  if [[ $cur = '=' ]]; then
    cur=''
  elif [[ $before = '=' ]] && ((COMP_CWORD > 1)); then
    before=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --) rest=$((COMP_CWORD - i)) && break ;;
      --lima-home)
        home=${COMP_WORDS[i + 1]}
        [[ $home != '=' ]] || home=${COMP_WORDS[i + 2]}
        ;;
      --install|--check|--uninstall) role=install ;;
      --pre|--stop|--run|--status) role=own ;;
    esac
  done
  COMPREPLY=()
  if [[ -n $rest ]]; then
    IFS=$'\n'
    compopt -o filenames 2>/dev/null
    if [[ $rest = 1 ]]; then COMPREPLY=($(compgen -c -- "$cur")); else COMPREPLY=($(compgen -f -- "$cur")); fi
    return
  fi
  case $before in
    --lima-home|--guard-dir) files=-d ;;
    --plist|--guard) files=-f ;;
    --timeout|--wait|--on-event|--sign|--exit-timeout) return ;;
  esac
  if [[ -n $files ]]; then
    IFS=$'\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$files" -- "$cur"))
    return
  fi
  case $cur,$role in
    -*,install) COMPREPLY=($(compgen -W '--all --plist --guard --guard-dir --sign --keep-alive --exit-timeout --on-event --no-on-event --lima-home --start --restart --downgrade --no-reload --purge --print -n --dry-run --yes --json -v --verbose -h --help -V --version' -- "$cur")) ;;
    -*,own) COMPREPLY=($(compgen -W '--all --lima-home --timeout --wait --on-event -n --dry-run --json -v --verbose -h --help -V --version' -- "$cur")) ;;
    -*) COMPREPLY=($(compgen -W '--pre --stop --run --status --install --check --uninstall --all --lima-home --timeout --wait --on-event -n --dry-run --json -v --verbose -h --help -V --version' -- "$cur")) ;;
    *) COMPREPLY=($(compgen -W "$(_lima_guard_instances "$home")" -- "$cur")) ;;
  esac
}

complete -F _lima_guard lima-guard
