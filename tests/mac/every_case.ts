/**
 * Each case of `tests/mac/record`, so that none is dropped unnoticed. KIND is `agent` and `daemon`; N the seconds of what is
 * asked again and again.
 */

const CASES: Readonly<Record<string, string>> = {
  "bootout.KIND": "deaf ending never slow wait",
  bootout: "other.KIND",
  "bootstrap.KIND": `
    binary deaf disabled ending ends-0 ends-1 ends-143 ends-78 fails-0 fails-1 fails-143 fails-78 file
    killed link loaded-already mode-600 mode-664 mode-666 no-file no-plist no-program no-volume
    open-folder other-owner quarantined reach slow slow-again stays throttled timeout-120 timeout-300
    timeout-5 timeout-60 timeout-61 timeout-none twice unsigned until-gone.N wait-option waits words`,
  bootstrap: "other.gui ssh.gui system-without-root twice.user",
  codesign: `
    run.ad-hoc run.changed run.none show.ad-hoc show.identifier sign sign-identifier sign.root sign.ssh
    verify.ad-hoc verify.apple verify.changed verify.none verify.root`,
  disable: "KIND.never",
  domain: `
    gui gui-99999 gui-99999.other gui-99999.root gui-99999.ssh gui.other gui.root gui.ssh system
    system.other system.root system.ssh user user.other user.root user.ssh`,
  enable: "KIND.never",
  head: `
    csrutil fdesetup hw.memsize hw.ncpu hw.optional.arm64 id kern.hv_support kern.hv_vmm_present
    managername managername.ssh manageruid maxfiles mount path pmset spctl sw_vers tmpdir umask uname
    which xcode-select`,
  id: "by-name by-number empty-full-name negative-number root unknown-name unknown-number",
  "kickstart.KIND": "again first k never p",
  kill: "KIND.KILL KIND.TERM",
  lsof: `
    free held-by-other held-by-root none one-and-none read removed root.free root.held-by-other
    root.held-by-root root.none root.read root.removed root.two root.written two written`,
  owners: "off.attach off.create off.mount off.root off.user on.attach on.create on.mount on.root on.user",
  places: `
    ls._ ls._Library ls._Library_Application_Support ls._Library_LaunchDaemons ls._Library_Logs
    ls._Library_PrivilegedHelperTools ls._opt_homebrew ls._usr_local ls._usr_local_libexec ls.home
    ls.home_Library_LaunchAgents mkdir-022 mkdir-077 no-volume.KIND stat._ stat._Library
    stat._Library_Application_Support stat._Library_LaunchDaemons stat._Library_Logs
    stat._Library_PrivilegedHelperTools stat._opt_homebrew stat._usr_local stat._usr_local_libexec
    stat.home stat.home_Library_LaunchAgents`,
  plutil: `
    json.binary json.cut json.doubled json.empty json.entity json.good json.not-there lint.binary
    lint.cut lint.doubled lint.empty lint.entity lint.good lint.not-there xml.binary xml.cut xml.doubled
    xml.empty xml.entity xml.good xml.not-there`,
  "print-disabled.KIND": "domain enabled-again one-disabled",
  "print.KIND": `
    after-bootout-wait after-kill-TERM arguments deaf.N disabled-and-loaded ended-0 ended-1 ended-143
    ended-78 ending.N exit-timeout-120 exit-timeout-300 exit-timeout-5 exit-timeout-60 exit-timeout-61
    exit-timeout-none gone keep-alive-ended-0 keep-alive-ended-1 keep-alive-ended-143
    keep-alive-ended-78 kickstarted killed never-loaded no-log no-program no-volume quarantined running
    slow-running throttled.N unsigned waits`,
  print: "other.KIND ssh.KIND twice.gui twice.user",
  "ps-bare": "blank-at-the-end byte-a0 composed decomposed emoji empty-argument kana line-end long plain tab",
  ps: `
    all blank-at-the-end byte-a0 composed decomposed emoji empty-argument kana launchd line-end long
    mixed no-such-pid of-other of-root plain setuid tab zombie zombie-parent`,
  reach: `
    asuser-sudo-u.bootout asuser-sudo-u.bootstrap asuser-sudo-u.id asuser-sudo-u.print asuser.bootout
    asuser.bootstrap asuser.id asuser.print root.bootout root.bootstrap root.id root.print
    sudo-P.bootout sudo-P.bootstrap sudo-P.id sudo-P.print sudo-u.bootout sudo-u.bootstrap sudo-u.id
    sudo-u.print uid-and-gid.bootout uid-and-gid.bootstrap uid-and-gid.id uid-and-gid.print
    uid-and-groups.bootout uid-and-groups.bootstrap uid-and-groups.id uid-and-groups.print`,
  sudo: "after-forget as-user as-user-H env forget kept other true umask version version-root",
  sysctl: "kern.bootsessionuuid kern.boottime kern.nothing kern.waketime",
  xattr: "copied curl marked scp unzip written-again",
};

export const EVERY_CASE: readonly string[] = Object.entries(CASES).flatMap(([group, names]) =>
  names.trim().split(/\s+/).map((name) => `${group}.${name}`)
);

/** The name of a case as it is in the list. */
export function caseName(name: string): string {
  return name.replace(/\.(agent|daemon)(?=\.|$)/, ".KIND").replace(
    /^((print\.KIND\.(ending|deaf|throttled)|bootstrap\.KIND\.until-gone)\.)\d+$/,
    "$1N",
  );
}
