/**
 * install.ts and the guard with the real launchd, as a login agent and as a daemon with UserName: install, check, stop,
 * crash, reload, uninstall. Needs a Mac and a compiled guard in dist (`deno task compile`); the agent needs a login
 * session, the daemon sudo without a password. The instance is none: tests/mac/throwaway.ts.
 */

import assert from "node:assert/strict";
import { readPrint } from "../lima_guard.ts";
import { project } from "./helpers/paths.ts";
import { eventually, isAlive } from "./helpers/processes.ts";
import type { Domain } from "./mac/launchd.ts";
import { commandsOf, plistOf, type Throwaway, writeThrowaway } from "./mac/throwaway.ts";

const onMac = Deno.build.os === "darwin";
const guard = `${project}/dist/lima-guard-${Deno.build.target}`;
/** Every instance of this file begins so: what a crashed run has left is found by it. */
const PREFIX = "lgtest";
/** What the pretended guest needs to end: several times launchd's own 5 s. */
const LINGER_S = 20;

interface Said {
  readonly code: number;
  readonly text: string;
}

function run(argv: readonly string[]): Said {
  const [program = "", ...args] = argv;
  const { code, stdout, stderr } = new Deno.Command(program, { args, stdin: "null" }).outputSync();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

/** Why it cannot be tried here; undefined where it can. */
function whyNot(domain: Domain): string | undefined {
  if (!onMac) return "needs a Mac";
  try {
    Deno.statSync(guard);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return "needs a compiled guard: deno task compile";
  }
  if (domain === "daemon") return run(["sudo", "-n", "true"]).code === 0 ? undefined : "needs sudo without a password";
  return run(["launchctl", "print", `gui/${Deno.uid()}`]).code === 0 ? undefined : "needs a login session";
}

/** One throw-away job, and everything that takes it away again. */
class Live implements AsyncDisposable {
  readonly label: string;
  readonly domainTarget: string;
  readonly target: string;
  readonly plist: string;
  readonly guardDir: string;
  readonly root: string;
  readonly made: Throwaway;
  readonly text: string;

  constructor(readonly domain: Domain) {
    const name = `${PREFIX}${Deno.pid}`;
    this.label = `io.lima-vm.${domain === "agent" ? "autostart" : "daemon"}.${name}`;
    this.domainTarget = domain === "agent" ? `gui/${Deno.uid()}` : "system";
    this.target = `${this.domainTarget}/${this.label}`;
    const folder = domain === "agent" ? `${Deno.env.get("HOME")}/Library/LaunchAgents` : "/Library/LaunchDaemons";
    this.plist = `${folder}/${this.label}.plist`;
    // A short path: sockets of an instance have at most 104 bytes.
    this.root = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg" }));
    this.guardDir = domain === "agent" ? `${this.root}/libexec` : `/Library/lima-guard-${name}`;
    this.made = writeThrowaway(this.root, name, LINGER_S);
    this.text = plistOf(this.made, domain, this.label, run(["id", "-un"]).text.trim());
  }

  /** As the user whose commands launchd obeys for this job: root for a daemon. */
  asOwner(...argv: string[]): Said {
    return run([...this.domain === "daemon" ? ["sudo", "-n"] : [], ...argv]);
  }

  load(): void {
    Deno.writeTextFileSync(`${this.root}/plist`, this.text);
    const owner = this.domain === "daemon" ? ["-o", "root", "-g", "wheel"] : [];
    const copied = this.asOwner("install", "-m", "644", ...owner, `${this.root}/plist`, this.plist);
    assert.equal(copied.code, 0, copied.text);
    const loaded = this.asOwner("launchctl", "bootstrap", this.domainTarget, this.plist);
    assert.equal(loaded.code, 0, loaded.text);
  }

  guard(what: keyof ReturnType<typeof commandsOf>): Said {
    return run([guard, ...commandsOf(this.made, this.guardDir)[what]]);
  }

  print(): Said {
    return run(["launchctl", "print", this.target]);
  }

  pid(): Promise<number> {
    return eventually(() => {
      const { pid } = readPrint(this.print().text);
      assert.ok(pid, this.print().text);
      return pid;
    }, { withinMs: 30_000 });
  }

  agent(): Promise<number> {
    return eventually(() => {
      const pid = Number(Deno.readTextFileSync(`${this.made.dir}/ha.pid`));
      assert.ok(isAlive(pid));
      return pid;
    }, { withinMs: 30_000 });
  }

  async gone(): Promise<void> {
    await eventually(() => assert.equal(this.print().code, 113), { withinMs: 70_000 });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.asOwner("launchctl", "bootout", this.target);
    await this.gone();
    this.asOwner("launchctl", "enable", this.target);
    const pid = await Deno.readTextFile(`${this.made.dir}/ha.pid`).then(Number, () => 0);
    if (pid > 1 && isAlive(pid)) Deno.kill(pid, "SIGKILL");
    this.asOwner("rm", "-rf", this.plist, `${this.plist}.before-lima-guard`, this.guardDir, this.root);
  }
}

/** A run that crashed may have left jobs and files. */
function sweep(): void {
  for (
    const [folder, domain, sudo] of [
      [`${Deno.env.get("HOME")}/Library/LaunchAgents`, `gui/${Deno.uid()}`, []],
      ["/Library/LaunchDaemons", "system", ["sudo", "-n"]],
    ] as const
  ) {
    for (const { name } of Deno.readDirSync(folder)) {
      const [, label, rest] = new RegExp(`^(io\\.lima-vm\\.\\w+\\.${PREFIX}\\d+)\\.plist(.*)$`).exec(name) ?? [];
      if (label === undefined) continue;
      if (rest === "") run([...sudo, "launchctl", "bootout", `${domain}/${label}`]);
      run([...sudo, "rm", "-f", `${folder}/${name}`]);
    }
  }
}

/** What was measured, for the summary of the run. */
function note(text: string): void {
  const summary = Deno.env.get("GITHUB_STEP_SUMMARY");
  if (summary) Deno.writeTextFileSync(summary, `- ${text}\n`, { append: true });
  Deno.stdout.writeSync(new TextEncoder().encode(`\n${text}\n`));
}

async function timed<T>(what: string, act: () => T | Promise<T>): Promise<T> {
  const began = performance.now();
  try {
    return await act();
  } finally {
    note(`${what}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }
}

/** The stages of the last stop, from the journal: which one ended it, and the seconds of each. */
function stages(dir: string): string {
  const lines = Deno.readTextFileSync(`${dir}/lima-guard.jsonl`).trim().split("\n").map((line) => JSON.parse(line));
  const end = lines.findLast(({ event }) => event === "end");
  return `${end?.stage ?? "no end"}: ${JSON.stringify(end?.seconds ?? {})}`;
}

async function story(domain: Domain): Promise<void> {
  sweep();
  await using live = new Live(domain);
  const { name, dir } = live.made;
  live.load();
  await live.agent();

  const installed = await timed(`${domain}: install, with a guest of ${LINGER_S} s`, () => live.guard("install"));
  assert.equal(installed.code, 0, installed.text);
  const print = live.print().text;
  assert.equal(readPrint(print).exitTimeoutS, 60, print);
  assert.ok(print.includes(`\t\t${live.guardDir}/lima-guard\n\t\t--run\n\t\t${name}\n`), print);
  if (domain === "daemon") {
    for (const path of [live.plist, `${live.plist}.before-lima-guard`, live.guardDir, `${live.guardDir}/lima-guard`]) {
      const { uid, mode } = Deno.statSync(path);
      assert.deepEqual([uid, (mode ?? 0) & 0o022], [0, 0], `${path}: owner and who else may write`);
    }
  }
  const checked = live.guard("check");
  assert.equal(checked.code, 0, checked.text);
  const again = live.guard("again");
  assert.equal(again.code, 0, again.text);
  assert.equal(live.print().text.match(/^\tpid = .*$/m)?.[0], print.match(/^\tpid = .*$/m)?.[0], "it was restarted");

  // A stop that is asked for.
  const agent = await live.agent();
  const stopped = await timed(`${domain}: --stop`, () => live.guard("stop"));
  assert.equal(stopped.code, 0, stopped.text);
  note(`${domain}: stages of --stop: ${stages(dir)}`);
  assert.equal(isAlive(agent), false);
  await eventually(() => assert.equal(readPrint(live.print().text).pid, undefined, "the job runs on"));

  // The guard dies: the next start clears what it left.
  live.asOwner("launchctl", "kickstart", live.target);
  await live.agent();
  live.asOwner("kill", "-9", String(await live.pid()));
  await eventually(() => assert.equal(readPrint(live.print().text).pid, undefined), { withinMs: 30_000 });
  const left = await Deno.readTextFile(`${dir}/ha.pid`).then(Number, () => 0);
  if (left > 1) await eventually(() => assert.equal(isAlive(left), false), { withinMs: 30_000 });
  live.asOwner("launchctl", "kickstart", live.target);
  await live.agent();

  // Out and in again.
  await live.pid();
  await timed(`${domain}: from bootout to gone`, async () => {
    live.asOwner("launchctl", "bootout", live.target);
    await live.gone();
  });
  await assert.rejects(Deno.stat(`${dir}/ha.pid`), Deno.errors.NotFound, "the guest was cut off");
  note(`${domain}: stages after bootout: ${stages(dir)}`);
  const status = live.guard("status");
  note(`${domain}: status after bootout ${status.code}: ${status.text.replaceAll(/\s+/g, " ").slice(0, 600)}`);
  assert.equal(live.asOwner("launchctl", "bootstrap", live.domainTarget, live.plist).code, 0);
  await live.agent();

  const gone = live.guard("uninstall");
  assert.equal(gone.code, 0, gone.text);
  assert.equal(Deno.readTextFileSync(live.plist), live.text);
  assert.ok(!live.print().text.includes("--run"));
}

for (const domain of ["agent", "daemon"] as const) {
  const why = whyNot(domain);
  Deno.test({
    name: `real launchd, ${domain}: install, check, stop, crash, reload, uninstall${why ? `: ${why}` : ""}`,
    ignore: why !== undefined,
    fn: () => story(domain),
  });
}
