/**
 * The script that powers a guest off, as it really is sent: run by each shell that a guest may have, in an empty
 * environment, with a PATH on which stand-ins are all there is, and never as root. They note that they were called;
 * nothing of this machine's own systemctl, poweroff or shutdown is ever in reach.
 */

import assert from "node:assert/strict";
import { eventually, runGuard, startAgent, tempLimaHome } from "./helpers/mod.ts";

/** What ssh is asked to run in the guest, and what is said to it then: taken from a real stop. */
const { argv: ARGV, remote: REMOTE, word: WORD } = await sentToTheGuest();

async function sentToTheGuest(): Promise<{ argv: string[]; remote: string; word: string }> {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using _ = await startAgent(k3s);
  const [argv, remote, word] = ["argv", "remote", "word"].map((name) => `${home.root}/${name}`) as [
    string,
    string,
    string,
  ];
  const script = `#!/bin/sh
printf '%s\\n' "$@" >'${argv}'
for last; do :; done
printf %s "$last" >'${remote}'
read -r word
printf '%s\\n' "$word" >'${word}'
exit 1
`;
  Deno.writeTextFileSync(`${home.bin}/ssh`, script, { mode: 0o755 });
  await runGuard(home, ["--stop", "k3s"]);
  const read = (path: string) => Deno.readTextFileSync(path);
  return { argv: read(argv).split("\n"), remote: read(remote), word: read(word) };
}

/** What PATH leads to, each a stand-in that notes its name and arguments; the value is its exit status. */
type Commands = Readonly<Record<string, number>>;

interface Shell {
  readonly name: string;
  readonly argv: readonly [string, ...string[]];
}

const SHELLS: readonly Shell[] = [
  { name: "dash", argv: ["dash"] },
  { name: "bash --posix", argv: ["bash", "--posix"] },
  { name: "busybox sh", argv: ["busybox", "sh"] },
];

/** `nobody`: whatever went wrong here, it could not power this machine off. */
const UNPRIVILEGED = Deno.uid() === 0 ? { uid: 65534, gid: 65534 } : {};

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  /** The commands that were called, in order. */
  readonly called: string[];
  /** What reached the kernel's sysrq, a file of the test's own. */
  readonly sysrq: string;
}

async function run(
  shell: Shell,
  commands: Commands,
  { says = WORD, system = "Linux", untilSysrq = "" }: { says?: string; system?: string; untilSysrq?: string } = {},
): Promise<Outcome> {
  harmless();
  const root = Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-script-" });
  try {
    Deno.chmodSync(root, 0o755);
    const [bin, log, sysrq] = [`${root}/bin`, `${root}/log`, `${root}/sysrq`];
    Deno.mkdirSync(bin);
    for (const file of [log, sysrq]) {
      Deno.writeTextFileSync(file, "");
      Deno.chmodSync(file, 0o666);
    }
    const command = (name: string, text: string) => {
      Deno.writeTextFileSync(`${bin}/${name}`, `#!/bin/sh\n${text}\n`);
      Deno.chmodSync(`${bin}/${name}`, 0o755);
    };
    const path = which(shell.argv[0])!;
    command("sh", `exec ${[path, ...shell.argv.slice(1)].join(" ")} "$@"`);
    command("sudo", `echo sudo >>'${log}'\n[ "$1" = -n ] || exit 99\nshift\nexec "$@"`);
    command("uname", `echo ${system}`);
    for (const [name, status] of Object.entries(commands)) {
      command(name, `echo "${name}\${1:+ $*}" >>'${log}'\nexit ${status}`);
    }
    const child = new Deno.Command(path, {
      args: [...shell.argv.slice(1), "-c", REMOTE.replaceAll(">/proc/sysrq-trigger", `>>${sysrq}`)],
      clearEnv: true,
      env: { PATH: bin },
      cwd: root,
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
      ...UNPRIVILEGED,
    }).spawn();
    const writer = child.stdin.getWriter();
    // One that has already left does not read any more.
    await writer.write(new TextEncoder().encode(says)).catch(() => {});
    await writer.close().catch(() => {});
    const { code, stdout } = await child.output();
    await eventually(() => assert.equal(Deno.readTextFileSync(sysrq), untilSysrq));
    const called = Deno.readTextFileSync(log).split("\n").filter((line) => line !== "");
    assert.equal(called.shift(), "sudo", "it did not go through `sudo -n`");
    return { code, stdout: new TextDecoder().decode(stdout), called, sysrq: Deno.readTextFileSync(sysrq) };
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
}

function which(program: string): string | undefined {
  for (const dir of ["/bin", "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"]) {
    try {
      if (Deno.statSync(`${dir}/${program}`).isFile) return `${dir}/${program}`;
    } catch {
      // The next one.
    }
  }
  return undefined;
}

/** Why a shell cannot be tried here. A busybox that finds its own `poweroff` without PATH must not be tried. */
function whyNot({ argv }: Shell): string | undefined {
  const path = which(argv[0]);
  if (path === undefined) return `${argv[0]} is not installed`;
  const { success } = new Deno.Command(path, {
    args: [...argv.slice(1), "-c", "command -v poweroff || command -v systemctl || command -v shutdown"],
    clearEnv: true,
    env: { PATH: "/nonexistent" },
    stdout: "null",
    stderr: "null",
    ...UNPRIVILEGED,
  }).outputSync();
  return success ? "it finds commands without PATH" : undefined;
}

const ALL: Commands = { sync: 0, systemctl: 0, poweroff: 0, shutdown: 0 };
const { systemctl: _, ...WITHOUT_SYSTEMCTL } = ALL;

/** What the guest has, and what is called of it. */
const ROWS: readonly {
  what: string;
  commands: Commands;
  system?: string;
  called: readonly string[];
  works?: boolean;
}[] = [
  { what: "systemd", commands: ALL, called: ["sync", "systemctl poweroff"] },
  { what: "systemctl alone", commands: { systemctl: 0 }, called: ["systemctl poweroff"] },
  { what: "no systemctl", commands: WITHOUT_SYSTEMCTL, called: ["sync", "poweroff"] },
  { what: "poweroff alone", commands: { poweroff: 0 }, called: ["poweroff"] },
  { what: "shutdown alone", commands: { shutdown: 0 }, called: ["shutdown -h now"] },
  {
    what: "a systemctl that fails",
    commands: { ...ALL, systemctl: 1 },
    called: ["sync", "systemctl poweroff", "poweroff"],
  },
  {
    what: "nothing that works",
    commands: { sync: 0, systemctl: 1, poweroff: 1, shutdown: 1 },
    called: ["sync", "systemctl poweroff", "poweroff", "shutdown -h now"],
    works: false,
  },
  { what: "a sync that fails", commands: { ...ALL, sync: 1 }, called: ["sync", "systemctl poweroff"] },
  { what: "nothing that powers off", commands: { sync: 0 }, called: ["sync"], works: false },
  { what: "macOS", commands: ALL, system: "Darwin", called: ["sync", "shutdown -h now"] },
  { what: "FreeBSD", commands: ALL, system: "FreeBSD", called: ["sync", "shutdown -p now"] },
];

/** What arrives instead of the word and a line end: lima-guard was killed in the middle of it, or another program wrote. */
const OTHER_WORDS = [
  "",
  "\n",
  "poweroff",
  "poweroff\n",
  "poweroff 51",
  "power",
  "halt\n",
  "halt 51\n",
  "poweroff now\n",
  "poweroff -1\n",
  "poweroff 5 1\n",
  "poweroff 5x\n",
  "POWEROFF\n",
  "poweroff\r\n",
  "*\n",
  "$x\n",
];

const SYSRQ = "/proc/sysrq-trigger";

/** The script without what goes around it; throws where it is anything that must not be run here. */
function harmless(): string {
  const script = /^sudo -n sh -c '([^']*)'$/.exec(REMOTE)?.[1];
  assert.ok(script, REMOTE);
  assert.deepEqual(
    script.match(/(?<![\w.])\/[\w/.-]*/g)?.filter((path) => path !== "/dev/null" && path !== SYSRQ) ?? [],
    [],
  );
  return script;
}

Deno.test("what is sent is one command of sudo's, which never asks for a password, and names no program by its path", () => {
  assert.notEqual(harmless(), "");
});

Deno.test("ssh asks no ssh-agent, which may hang at a shutdown, and is not led through another session", () => {
  for (const option of ["IdentityAgent=none", "ControlMaster=no", "ControlPath=none", "BatchMode=yes"]) {
    assert.equal(ARGV[ARGV.indexOf(option) - 1], "-o", option);
  }
});

for (const shell of SHELLS) {
  const why = whyNot(shell);
  if (why === undefined) tryIn(shell);
  else Deno.test({ name: `the script in ${shell.name} (skipped: ${why})`, ignore: true, fn: () => {} });
}

function tryIn(shell: Shell): void {
  for (const { what, commands, system = "Linux", called, works = true } of ROWS) {
    Deno.test(`${shell.name}: a guest with ${what}`, async () => {
      const outcome = await run(shell, commands, { system });
      assert.deepEqual(outcome.called, called);
      assert.equal(outcome.code === 0, works, `status ${outcome.code}`);
      assert.deepEqual(outcome.stdout.split("\n").slice(0, 2), ["lima-guard: ready", "lima-guard: accepted"]);
      if (!works) assert.match(outcome.stdout, /nothing .*powers off/);
    });
  }

  const late = `sleep 43 && { sync & sleep 1; echo u >`;
  const armed = (called: string[]) => called.filter((line) => /^(systemd-run|sleep)/.test(line));

  Deno.test(`${shell.name}: a detached shell and a unit outside the shutdown switch off 8 s before the power goes`, async () => {
    const commands = { ...ALL, "systemd-run": 0, sleep: 0 };
    const { called, code } = await run(shell, commands, { says: "poweroff 51\n", untilSysrq: "u\no\n" });
    assert.equal(code, 0);
    const begin = "systemd-run -q --collect --unit=lima-guard-deadline -p DefaultDependencies=no sh -c ";
    assert.equal(called.filter((line) => line.startsWith(begin + late)).length, 1, called.join("\n"));
    assert.ok(called.includes("systemctl poweroff"), called.join("\n"));
    // The shell is there before the unit is asked for, which may take seconds.
    const script = harmless();
    assert.ok(script.indexOf("eval") < script.indexOf("systemd-run -q"));
  });

  for (
    const [what, commands] of [["without systemd-run", {}], ["whose systemd-run fails", { "systemd-run": 1 }]] as const
  ) {
    Deno.test(`${shell.name}: a guest ${what} has a detached shell that remounts read-only, then switches off`, async () => {
      const all = { ...ALL, sleep: 0, ...commands };
      const { called } = await run(shell, all, { says: "poweroff 51\n", untilSysrq: "u\no\n" });
      assert.deepEqual(called.filter((line) => line.startsWith("sleep")), ["sleep 43", "sleep 1", "sleep 2"]);
    });
  }

  Deno.test(`${shell.name}: where sleep fails nothing is switched off early`, async () => {
    const { sysrq } = await run(shell, { ...ALL, sleep: 1 }, { says: "poweroff 51\n" });
    assert.equal(sysrq, "");
  });

  Deno.test(`${shell.name}: too little time, or another system: nothing is armed`, async () => {
    for (
      const [says, system] of [["poweroff 8\n", "Linux"], ["poweroff 51\n", "Darwin"], ["poweroff 51\n", "FreeBSD"]]
    ) {
      const { called } = await run(shell, { ...ALL, "systemd-run": 0, sleep: 0 }, { says: says!, system: system! });
      assert.deepEqual(armed(called), []);
    }
  });

  Deno.test(`${shell.name}: where nothing powers off, nothing stays armed`, async () => {
    const commands = { sync: 0, systemctl: 1, "systemd-run": 0 };
    const { called } = await run(shell, commands, { says: "poweroff 51\n" });
    assert.deepEqual(called.slice(1), ["sync", "systemctl poweroff", "systemctl stop lima-guard-deadline"]);
  });

  Deno.test(`${shell.name}: a guest without uname is taken for a Linux`, async () => {
    const { called } = await run(shell, ALL, { system: "; exit 127" });
    assert.deepEqual(called, ["sync", "systemctl poweroff"]);
  });

  Deno.test(`${shell.name}: nothing is done for any other word, nor for the end of the line`, async () => {
    for (const says of OTHER_WORDS) {
      const outcome = await run(shell, ALL, { says });
      assert.deepEqual(outcome.called, [], JSON.stringify(says));
      assert.notEqual(outcome.code, 0, JSON.stringify(says));
      assert.equal(outcome.stdout, "lima-guard: ready\n");
    }
  });
}
