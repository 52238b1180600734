/**
 * `--run` on real processes: what it leaves with, what it waits for, when it may be stopped, what it adopts, and the
 * line that it keeps ready. launchd itself is in run_launchd_test.ts.
 */

import assert from "node:assert/strict";
import {
  agentPid,
  asJob,
  assertDown,
  events,
  foreground,
  hold,
  journal,
  last,
  run,
  running,
  script,
  stopRun,
  writeBadEnds,
} from "./launchd/run.ts";
import {
  type Bystander,
  type Conf,
  denoFlags,
  eventually,
  everyonesEnv,
  type Guest,
  type Home,
  type Instance,
  isAlive,
  limactl,
  NO_ORDINARY_USER,
  ordinaryUser,
  project,
  ps,
  readOnlyDir,
  runGuard,
  sshGuest,
  startAgent,
  startBystander,
  startQemuOrphan,
  tempLimaHome,
  tinyMount,
  waitForExit,
  whyNoMount,
  whyNoReadOnlyDir,
  whyNoSshd,
  within,
} from "./helpers/mod.ts";
import { denoDir } from "./launchd/jobs.ts";
import { guardWith, meanwhile } from "./helpers/guard_with.ts";

const NO_SSHD = whyNoSshd();
const LINUX = Deno.build.os === "linux";

interface Scene {
  readonly home: Home;
  readonly vm: Instance;
  /** Never to be signalled, whatever PID file names it. */
  readonly bystander: Bystander;
}

function test(
  name: string,
  body: (scene: Scene) => Promise<void>,
  { conf = {}, ignore = false }: { conf?: Conf; ignore?: boolean } = {},
): void {
  Deno.test({
    name,
    ignore,
    async fn() {
      await using home = await tempLimaHome();
      await using bystander = await startBystander(home);
      await body({ home, vm: home.instance("vm", { conf }), bystander });
      bystander.assertAlive();
    },
  });
}

/** A program that does what TEXT says and needs no Lima. */
function shell(text: string): string[] {
  return ["/bin/sh", "-c", text];
}

// ── its exit status ──

Deno.test("it leaves with the status of the command", async () => {
  await using home = await tempLimaHome();
  const file = `${home.root}/not-executable`;
  Deno.writeTextFileSync(file, "#!/bin/sh\n", { mode: 0o644 });
  // It is there, and cannot be run: as a program for another processor, on a Mac.
  const loop = `${home.root}/loop`;
  Deno.symlinkSync(loop, loop);
  const rows: readonly (readonly [string[], number, string | null])[] = [
    [shell("exit 0"), 0, null],
    [shell("exit 7"), 7, null],
    [shell("kill -KILL $$"), 137, "SIGKILL"],
    [shell("kill -TERM $$"), 143, "SIGTERM"],
    [["/nonexistent/limactl"], 127, null],
    [["no-such-program"], 127, null],
    [[file], 126, null],
    [[home.root], 126, null],
    [[loop], 126, null],
  ];
  await Promise.all(rows.map(async ([command, status, signal], n) => {
    const vm = home.instance(`vm${n}`);
    const result = await run(vm, { command }).result();
    assert.equal(result.status, status, `${command.join(" ")}: ${result.stderr}`);
    const end = last(vm, "end");
    assert.deepEqual([end.requested, end.status, end.signal, end.role], [false, status, signal, "run"]);
    assert.ok(end.ranS >= 0 && end.ranS < 20, `ran for ${end.ranS} s`);
    if (status === 126 || status === 127) assert.match(result.stderr, new RegExp(`Cannot start "${command[0]}"`));
    else assert.deepEqual(events(vm), ["start", "end"]);
  }));
});

test("a requested stop: 0, although the vz agent exits with 1; the journal has it stage by stage", async ({ vm }) => {
  await using guard = await running(vm);
  const pid = await agentPid(vm);
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.match(stderr, /CanRequestStop/);
  await assertDown(vm);
  const lines = journal(vm).filter(({ event }) => event !== "booted");
  assert.deepEqual(lines.map(({ event }) => event), ["start", "running", "stop", "stage", "stage", "end"]);
  for (const line of lines) {
    assert.deepEqual([line.dir, line.role], [vm.dir, "run"]);
    assert.ok(Math.abs(Date.parse(line.time) - Date.now()) < 120_000, line.time);
  }
  const [start, up, request, guest, agent, end] = lines;
  assert.deepEqual([start!.pid, start!.command, start!.job], [pid, foreground(vm), null]);
  assert.ok(up!.seconds > 0 && up!.seconds < 60);
  assert.equal(request!.budgetS, 60);
  assert.deepEqual([guest!.stage, agent!.stage], ["guest", "agent"]);
  assert.deepEqual([end!.requested, end!.stage, end!.status], [true, "agent", 0]);
  assert.match(end!.cut, /CanRequestStop/);
  assert.ok(end!.seconds.total > 0 && end!.seconds.total < 20);
}, { conf: { stop: "cannot-request-stop" } });

test("the host agent ends by itself: its own status, and what it left is cleared", async ({ vm }) => {
  const result = await run(vm).result();
  assert.equal(result.status, 2, result.stderr);
  await assertDown(vm);
  const end = last(vm, "end");
  assert.deepEqual([end.requested, end.code, end.status], [false, 2, 2]);
}, { conf: { exit_after_ms: 700, exit_code: 2 } });

test("a good end stays one where only the next start is blocked", async ({ home, vm }) => {
  await using guard = await running(vm);
  vm.write("lima.yaml", `${vm.read("lima.yaml")}\nadditionalDisks:\n- name: gone\n`);
  await limactl(home, ["stop", "vm"]);
  const { status, stderr } = await guard.result();
  assert.equal(status, 0, stderr);
  await assertDown(vm);
});

test("the host agent is killed: 137, and what it left is cleared", async ({ vm }) => {
  await using guard = await running(vm);
  Deno.kill(await agentPid(vm), "SIGKILL");
  const result = await guard.result();
  assert.equal(result.status, 137, result.stderr);
  await assertDown(vm);
  assert.equal(last(vm, "end").signal, "SIGKILL");
});

test("QEMU's agent is killed: the machine that is left is stopped before the guard leaves", async ({ vm }) => {
  await using guard = await running(vm);
  const qemu = vm.pid("qemu.pid")!;
  Deno.kill(await agentPid(vm), "SIGKILL");
  const result = await guard.result();
  assert.equal(result.status, 137, result.stderr);
  assert.equal(isAlive(qemu), false);
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
}, { conf: { vmtype: "qemu" } });

for (const signal of ["SIGINT", "SIGHUP"] as const) {
  test(`${signal} asks for the stop too`, async ({ vm }) => {
    await using guard = await running(vm);
    guard.signal(signal);
    assert.equal((await guard.result()).status, 0);
    assert.equal(vm.guestDisk(), "clean");
    await assertDown(vm);
  });
}

test("--timeout is the budget of the stop: a guest that hangs is killed in it", async ({ vm, bystander }) => {
  await using guard = await running(vm, { flags: ["--timeout", "4"] });
  vm.pidFile("qemu.pid", bystander.pid);
  const { status, stderr, seconds } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(seconds < 6, `${seconds} s`);
  assert.equal(last(vm, "end").stage, "killed");
  await assertDown(vm);
}, { conf: { stop: "hang" } });

// ── what the command gets ──

test("the command's environment, group and files", async ({ home, vm }) => {
  const dir = `${home.root}/lima tools`;
  Deno.mkdirSync(dir);
  const command = [`${dir}/limactl`, "start", "vm", "--foreground"];
  Deno.symlinkSync(Deno.realPathSync(home.limactl), command[0]!);
  const label = asJob(vm, 6);
  const env = { ...label, HOME: "", USER: "", LOGNAME: "", PATH: "/usr/bin:/bin:/usr/sbin:/sbin" };
  const link = `${home.root}/link`;
  Deno.symlinkSync(home.lima, link);
  await using guard = await running(vm, { env: { ...env, LIMA_HOME: link }, command });
  const [start] = vm.starts();
  const id = (...args: string[]) =>
    new TextDecoder().decode(new Deno.Command("id", { args }).outputSync().stdout).trim();
  assert.equal(start!.env.LIMA_HOME, home.lima);
  assert.equal(start!.env.XPC_SERVICE_NAME, label.XPC_SERVICE_NAME);
  assert.equal(start!.env.USER, id("-un"));
  assert.equal(start!.env.LOGNAME, id("-un"));
  assert.ok(Deno.statSync(start!.env.HOME!).isDirectory);
  if (LINUX) assert.equal(start!.env.HOME, homeOf(id("-un")));
  assert.equal(
    start!.env.PATH,
    `/usr/bin:/bin:/usr/sbin:/sbin:${dir}:/opt/homebrew/bin:/usr/local/bin`,
  );
  assert.equal(start!.env.STANDIN_HOME, home.root, "the rest is inherited");
  assert.equal(ps(start!.pid)!.pgid, ps(guard.pid)!.pgid, "launchd ends what is left in the group");
  if (LINUX) assert.equal(Deno.readLinkSync(`/proc/${start!.pid}/fd/0`), "/dev/null");
  assert.equal((await stopRun(guard)).status, 0);
});

function homeOf(user: string): string {
  const line = Deno.readTextFileSync("/etc/passwd").split("\n").find((text) => text.startsWith(`${user}:`));
  return line!.split(":")[5]!;
}

test("what is set is not changed, and no label is made up", async ({ home, vm }) => {
  const show = shell('printf "%s|" "$HOME" "$USER" "$LOGNAME" "${XPC_SERVICE_NAME-unset}" "$LIMA_HOME"; exit 1');
  const env = { HOME: home.user, USER: "ann", LOGNAME: "ann" };
  const result = await run(vm, { env, command: show }).result();
  assert.equal(result.stdout, `${home.user}|ann|ann|unset|${home.lima}|`);
  const other = await run(home.instance("other"), { env: { ...env, XPC_SERVICE_NAME: "0" }, command: show }).result();
  assert.equal(other.stdout, `${home.user}|ann|ann|0|${home.lima}|`);
});

test("stdin is /dev/null; stdout and stderr are the guard's own, byte for byte", async ({ vm }) => {
  const command = shell('cat && printf "out\\0\\377"; echo err >&2; exit 1');
  const result = await run(vm, { command, stdin: "not for you\n" }).result();
  assert.equal(result.status, 1, result.stderr);
  assert.equal(result.stdout, "out\0\ufffd");
  assert.match(result.stderr, /^err$/m);
});

test("arguments reach the command as they stand", async ({ vm }) => {
  const args = ["", " two  words ", "--run", "--", "-v", "a'b\"c", "$HOME", "é\u0301"];
  const command = ["/bin/sh", "-c", 'for a; do printf "%s|" "$a"; done; exit 1', "sh", ...args];
  const result = await run(vm, { command }).result();
  assert.equal(result.stdout, args.map((arg) => `${arg}|`).join(""));
});

// ── at a terminal ──

const NO_SCRIPT = !LINUX || !has("/usr/bin/script");

function has(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** lima-guard on a terminal of its own, and a person who types. */
async function atTerminal(vm: Instance, flags: string[] = []) {
  const guard = ["run", "-A", ...denoFlags(), `${project}/lima_guard.ts`, ...flags, "--run", vm.name, "--"];
  const quoted = [Deno.execPath(), ...guard, ...foreground(vm)].map((word) => `'${word}'`).join(" ");
  const child = new Deno.Command("/usr/bin/script", {
    args: ["-qefc", `exec ${quoted}`, "/dev/null"],
    env: { ...vm.home.env, LANG: "C.UTF-8", DENO_DIR: denoDir(), DENO_NO_UPDATE_CHECK: "1" },
    clearEnv: true,
    stdin: "piped",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  let shown = "";
  const reading = (async () => {
    for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) shown += text;
  })();
  const keyboard = child.stdin.getWriter();
  await eventually(() => assert.match(shown, /Running after/), { withinMs: 45_000 });
  return {
    shown: () => shown,
    type: (keys: string) => keyboard.write(new TextEncoder().encode(keys)),
    async end() {
      const { code } = await within(child.status, 20_000, () => shown);
      await reading;
      await keyboard.close().catch(() => {});
      return code;
    },
  };
}

test(
  "at a terminal the command has a session of its own: Ctrl-C asks the guard, not the host agent",
  async ({ vm }) => {
    const terminal = await atTerminal(vm);
    const pid = await agentPid(vm);
    const guard = ps(pid)!.ppid;
    assert.match(ps(guard)!.command, / --run vm /);
    assert.notEqual(session(pid), session(guard));
    assert.equal(ps(pid)!.pgid, pid);
    await terminal.type("\x03");
    assert.equal(await terminal.end(), 0, terminal.shown());
    const said = vm.log().filter((line) => line.startsWith("Received SIG"));
    assert.deepEqual(said, ["Received SIGTERM, shutting down the host agent"], "Ctrl-C is a SIGINT");
    assert.equal(vm.guestDisk(), "clean");
    await assertDown(vm);
  },
  { ignore: NO_SCRIPT },
);

function session(pid: number): number {
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[3]);
}

test("at a terminal Ctrl-C, at least a second after the first, leads to the next stage", async ({ vm }) => {
  const terminal = await atTerminal(vm);
  await terminal.type("\x03");
  await eventually(() => assert.match(terminal.shown(), /agent, \d+ s left/));
  // The second one is heard only when a second has gone by: typed again and again, it comes through once it may.
  const typing = setInterval(() => void terminal.type("\x03").catch(() => {}), 1200);
  try {
    assert.equal(await terminal.end(), 0, terminal.shown());
  } finally {
    clearInterval(typing);
  }
  const [stage] = journal(vm).filter((line) => line.event === "stage" && line.stage === "agent");
  assert.equal(stage!.outcome, "skipped by a signal");
  assert.equal(last(vm, "end").stage, "killed");
  await assertDown(vm);
}, { ignore: NO_SCRIPT, conf: { stop: "hang" } });

// ── signals that come again ──

test("under launchd further signals change nothing: they are journalled", async ({ vm }) => {
  await using guard = await running(vm, { env: asJob(vm, 30) });
  guard.signal("SIGTERM");
  await guard.waitForLine(/stage agent/);
  const first = Date.now();
  // More than a second later, so that a terminal would take them for a wish to skip.
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    await eventually(() => {
      if (events(vm).filter((event) => event === "signal").length === 0 && Date.now() - first < 1300) {
        throw new Error("too early");
      }
    });
    guard.signal(signal);
    await eventually(() => assert.equal(last(vm, "signal").signal, signal));
  }
  const { status, stderr } = await guard.result();
  assert.equal(status, 0, stderr);
  assert.equal(last(vm, "end").stage, "agent", "the guest had its whole grace");
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
}, { conf: { stop: "slow:2500" } });

test("by hand a second SIGTERM skips to the next stage", async ({ vm }) => {
  await using guard = await running(vm);
  guard.signal("SIGTERM");
  await guard.waitForLine(/stage agent/);
  const again = setInterval(() => guard.signal("SIGTERM"), 1200);
  try {
    const { status, stderr } = await within(guard.result(), 20_000, () => guard.stderr);
    assert.equal(status, 0, stderr);
  } finally {
    clearInterval(again);
  }
  assert.equal(last(vm, "end").stage, "killed");
  await assertDown(vm);
}, { conf: { stop: "hang" } });

test("two SIGTERMs at once are one wish", async ({ vm }) => {
  await using guard = await running(vm);
  guard.signal("SIGTERM");
  guard.signal("SIGTERM");
  guard.signal("SIGINT");
  const { status, stderr } = await guard.result();
  assert.equal(status, 0, stderr);
  assert.equal(last(vm, "end").stage, "agent");
  assert.equal(vm.guestDisk(), "clean");
}, { conf: { stop: "slow:700" } });

// ── a stop before the command runs ──

/** Stopped while it waits: 0, before the 5 s after which it looks again, and the command was never started. */
async function stopsWaiting(vm: Instance, guard: ReturnType<typeof run>, line: RegExp): Promise<string> {
  await guard.waitForLine(line);
  const { status, stderr, seconds } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(seconds < 5, `it took ${seconds} s`);
  assert.equal(vm.has("standin.starts"), false, "the command was started");
  assert.equal(vm.home.wouldHaveCreated(), undefined);
  return stderr;
}

test("stopped while it waits for LIMA_HOME", async ({ home }) => {
  const vm = home.instance("later");
  const away = `${home.root}/away`;
  Deno.renameSync(home.lima, away);
  await using guard = run(vm, { env: asJob(vm, 6) });
  await stopsWaiting(vm, guard, /missing; looks again in 5 s/);
  Deno.renameSync(away, home.lima);
});

test("stopped while it waits for lima.yaml", async ({ vm }) => {
  vm.remove("lima.yaml");
  await using guard = run(vm, { env: asJob(vm, 6) });
  await stopsWaiting(vm, guard, /missing; looks again in 5 s/);
});

test("stopped while something is in the way", async ({ vm }) => {
  const foreign = `${vm.home.lima}/bad name`;
  Deno.mkdirSync(foreign);
  await using guard = run(vm, { env: asJob(vm, 6) });
  await stopsWaiting(vm, guard, /looks again in 5 s/);
  assert.ok(Deno.statSync(foreign).isDirectory);
});

test("stopped while a process is unknown: nothing is touched, and it is no success", async ({ vm, bystander }) => {
  for (const file of ["ha.pid", "vz.pid"]) vm.pidFile(file, bystander.pid);
  const { script, env } = guardWith({ programs: { ps: { does: "be killed" } } });
  await using guard = run(vm, { script: script!, env: { ...env, ...asJob(vm, 6) } });
  await guard.waitForLine(/unknown; looks again in 5 s/);
  const { status, stderr, seconds } = await stopRun(guard);
  assert.ok(seconds < 6, `it took ${seconds} s`);
  assert.deepEqual([vm.pid("ha.pid"), vm.pid("vz.pid")], [bystander.pid, bystander.pid]);
  assert.match(stderr, /unknown: .*ha\.pid/);
  assert.notEqual(status, 0, "unknown never counts as success");
});

test("stopped while another lima-guard has the lock", async ({ vm }) => {
  using _lock = hold(vm.path("lima-guard.lock"));
  await using guard = run(vm, { env: asJob(vm, 6) });
  await stopsWaiting(vm, guard, /waits up to \d+ s for/);
});

test("stopped while another lima-guard has the lock, and has had it for longer than one wait", async ({ vm }) => {
  using _lock = hold(vm.path("lima-guard.lock"));
  const { script, env } = guardWith({ lockMs: 200 });
  await using guard = run(vm, { script: script!, env: { ...env, ...asJob(vm, 6) } });
  await guard.waitForLine(/waits up to 5 s for/);
  const began = performance.now();
  await eventually(() => assert.ok(performance.now() - began > 700));
  await stopsWaiting(vm, guard, /waits up to 5 s for/);
});

test("stopped while another lima-guard has the lock and does nothing, and the machine runs: that is no success", async ({ vm }) => {
  await using agent = await startAgent(vm);
  using _lock = hold(vm.path("lima-guard.lock"));
  await using guard = run(vm, { env: asJob(vm, 6) });
  await guard.waitForLine(/waits up to \d+ s for/);
  const { status, stderr, seconds } = await stopRun(guard);
  assert.equal(status, 75, stderr);
  assert.match(stderr, /not stopped: .*lima-guard\.lock: another lima-guard holds its lock/);
  assert.ok(seconds < 6, `${seconds} s`);
  assert.ok(agent.isAlive());
});

test("stopped while another lima-guard has the lock, which it releases: the machine is stopped", async ({ vm }) => {
  await using agent = await startAgent(vm);
  const lock = hold(vm.path("lima-guard.lock"));
  await using guard = run(vm, { env: asJob(vm, 20) });
  await guard.waitForLine(/waits up to \d+ s for/);
  guard.signal("SIGTERM");
  await guard.waitForLine(/is to be stopped, and waits for another lima-guard/);
  lock[Symbol.dispose]();
  const { status, stderr } = await guard.result();
  assert.equal(status, 0, stderr);
  assert.ok(!agent.isAlive());
  assert.equal(vm.guestDisk(), "clean");
});

test("a journal that was set aside just now is not forgotten", async ({ vm }) => {
  writeBadEnds(vm, 5);
  Deno.renameSync(vm.path("lima-guard.jsonl"), vm.path("lima-guard.1.jsonl"));
  await using guard = run(vm);
  await guard.waitForLine(/the last runs ended badly soon after their start; waits (39|40) s/);
});

test("stopped during the restart back-off: the wait is over at once", async ({ vm }) => {
  writeBadEnds(vm, 5);
  await using guard = run(vm);
  await stopsWaiting(vm, guard, /the last runs ended badly soon after their start; waits (39|40) s/);
  const end = last(vm, "end");
  assert.equal(end.requested, true, "it resets the back-off");
});

test("stopped while it waits for its turn to start", async ({ home, vm }) => {
  Deno.mkdirSync(`${home.lima}/_lima-guard`);
  using _turn = hold(`${home.lima}/_lima-guard/start.lock`);
  await using guard = run(vm);
  await stopsWaiting(vm, guard, /waits for its turn/);
});

test("stopped while a booting agent of another run is waited for: it is stopped, not left to lose its power", async ({ vm }) => {
  await using agent = await startAgent(vm, { conf: { stay_at: "ha.sock" }, until: "ha.sock" });
  await using guard = run(vm, { env: asJob(vm, 8) });
  await guard.waitForLine(/booting; looks again in 5 s/);
  const { status, stderr, seconds } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(seconds < 8, `${seconds} s`);
  assert.equal(agent.isAlive(), false);
  await assertDown(vm);
});

test("stopped during the stop stages on an orphan: in launchd's time, not in its own", async ({ vm, bystander }) => {
  await using orphan = await startQemuOrphan(vm, { stop: "ignore", ignore_term: 1 });
  vm.pidFile("krunkit.pid", bystander.pid);
  await using guard = run(vm, { env: asJob(vm, 5) });
  await guard.waitForLine(/stage driver/);
  const { status, stderr, seconds } = await stopRun(guard);
  assert.ok(seconds < 5, `it took ${seconds} s of 5`);
  assert.equal(status, 0, stderr);
  assert.equal(orphan.isAlive(), false);
  assert.equal(vm.has("standin.starts") && vm.starts().length > 1, false, "the command was started");
  await assertDown(vm);
});

// ── a stop during the boot ──

/** A command that becomes the host agent when the test says so. */
function onceReleased(vm: Instance, preamble = ""): { command: string[]; tell: () => void } {
  const go = `${vm.home.root}/go`;
  const text = `#!/bin/sh\n${preamble}\necho waiting >&2\nuntil [ -e '${go}' ]; do sleep 0.05; done\nexec "$@"\n`;
  return {
    command: [script(vm, "once-released", text), ...foreground(vm)],
    tell: () => Deno.writeTextFileSync(go, ""),
  };
}

test("stopped before there is an ha.pid", async ({ vm }) => {
  const { command } = onceReleased(vm);
  await using guard = run(vm, { command, env: asJob(vm, 6) });
  await guard.waitForLine(/^waiting$/);
  const { status, stderr, seconds } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(seconds < 6, `${seconds} s of 6`);
  await assertDown(vm);
  assert.deepEqual(vm.home.processes().filter((line) => line.includes("once-released")), []);
});

test("stopped before there is an ha.pid, and the command starts the machine all the same", async ({ vm }) => {
  const { command, tell } = onceReleased(vm, "trap '' TERM");
  await using guard = run(vm, { command, env: asJob(vm, 6) });
  await guard.waitForLine(/^waiting$/);
  guard.signal("SIGTERM");
  await guard.waitForLine(/SIGTERM to .*once-released/);
  tell();
  const { status, stderr } = await guard.result();
  // Either nothing of it lives, or it is no success.
  if (status === 0) await assertDown(vm);
  else assert.equal(status, 1, stderr);
}, { conf: { vmtype: "qemu" } });

test("stopped while the host agent has ha.pid and nothing else", async ({ vm }) => {
  await using guard = run(vm, { env: asJob(vm, 6) });
  await eventually(() => assert.ok(vm.pid("ha.pid")));
  const { status, stderr, seconds } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(seconds < 6, `${seconds} s of 6`);
  await assertDown(vm);
}, { conf: { stay_at: "ha.pid" } });

test("stopped while the guest boots, and the vz agent reads no signal yet: killed in time", async ({ vm }) => {
  await using guard = run(vm, { env: asJob(vm, 6) });
  await eventually(() => assert.ok(vm.pid("vz.pid")));
  const { status, stderr, seconds } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(seconds < 6, `${seconds} s of 6`);
  assert.equal(last(vm, "end").stage, "killed");
  await assertDown(vm);
  vm.conf({ boot_ms: "" });
  await using again = await running(vm, { env: asJob(vm, 6) });
  assert.equal((await stopRun(again)).status, 0);
}, { conf: { boot_ms: 60_000 } });

test("stopped while QEMU boots, whose guest hears no power button yet: killed in time", async ({ vm }) => {
  await using guard = run(vm, { env: asJob(vm, 5) });
  await eventually(() => assert.ok(vm.pid("qemu.pid")));
  const qemu = vm.pid("qemu.pid")!;
  const { status, stderr, seconds } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(seconds < 5, `${seconds} s of 5`);
  assert.equal(isAlive(qemu), false);
  assert.equal(last(vm, "end").stage, "killed");
  await assertDown(vm);
}, { conf: { boot_ms: 60_000, vmtype: "qemu" } });

// ── a stop after the end ──

test(
  "asked to stop while it clears up after a dead agent: the machine that is left ends in launchd's time",
  async ({ vm }) => {
    await using guard = await running(vm, { env: asJob(vm, 5) });
    const qemu = vm.pid("qemu.pid")!;
    Deno.kill(await agentPid(vm), "SIGKILL");
    await guard.waitForLine(/stage driver/);
    const { seconds } = await stopRun(guard, 9_000);
    assert.ok(seconds < 5, `it took ${seconds} s of 5`);
    assert.equal(isAlive(qemu), false);
    await assertDown(vm);
  },
  { conf: { vmtype: "qemu", stop: "ignore", ignore_term: 1 } },
);

test("asked to stop while a command that ignores SIGTERM is ended after its agent: in launchd's time", async ({ vm }) => {
  await using guard = await running(vm, { env: asJob(vm, 5), command: colima(vm, "IGNORE") });
  Deno.kill(await agentPid(vm), "SIGKILL");
  await guard.waitForLine(/SIGTERM to .*colima/);
  const { seconds } = await stopRun(guard, 9_000);
  assert.ok(seconds < 5, `it took ${seconds} s of 5`);
  await assertDown(vm);
});

// ── by hand, and under launchd ──

test("by hand, no such instance: 66, and nothing is made", async ({ home, vm }) => {
  vm.remove("lima.yaml");
  const result = await run(vm).result();
  assert.equal(result.status, 66);
  assert.match(result.stderr, /silently create a new VM/);
  const none = await runGuard(home, ["--run", "absent", "--", home.limactl, "start", "absent", "--foreground"]);
  assert.equal(none.status, 66);
  assert.equal(home.wouldHaveCreated(), undefined);
  assert.deepEqual(vm.files(), ["disk", "lima-version"]);
});

test("by hand, another lima-guard has the lock: 75", async ({ vm }) => {
  using _lock = hold(vm.path("lima-guard.lock"));
  const { script, env } = guardWith({ lockMs: 300 });
  const result = await run(vm, { script: script!, env: env! }).result();
  assert.equal(result.status, 75, result.stderr);
  assert.match(result.stderr, /waits up to 10 s/);
  assert.match(result.stderr, /blocked: .*lima-guard\.lock/);
  assert.equal(vm.has("standin.starts"), false);
});

for (const under of ["by hand", "under launchd"]) {
  test(`another user's instance, ${under}: 77, and the line to type`, async ({ vm }) => {
    const user = ordinaryUser()!;
    Deno.chownSync(vm.dir, user.uid, user.gid);
    const result = await run(vm, { env: under === "by hand" ? {} : asJob(vm, 6) }).result();
    assert.equal(result.status, 77, result.stderr);
    assert.match(result.stderr, new RegExp(`sudo -H -u ${user.name} lima-guard --run --lima-home \\S+ vm`));
    assert.equal(vm.has("standin.starts"), false);
    assert.equal(vm.has("lima-guard.lock"), false);
  }, { ignore: ordinaryUser() === null });
}
test("under launchd it waits for a folder that it may not look into yet", async ({ home, vm }) => {
  home.giveTo(ordinaryUser()!);
  const volume = `${home.root}/volume`;
  Deno.mkdirSync(volume, { mode: 0o700 });
  Deno.renameSync(home.lima, `${volume}/lima`);
  const env = { ...everyonesEnv(home), LIMA_HOME: `${volume}/lima`, XPC_SERVICE_NAME: "io.lima-vm.autostart.vm" };
  const twist = guardWith({ hurry: true });
  const options = { script: twist.script!, env: { ...twist.env, ...env }, user: ordinaryUser() };
  await using guard = run(vm, { ...options, command: ["sleep", "60"] });
  await guard.waitForLine(/: blocked; looks again in 300 s/);
  Deno.chmodSync(volume, 0o755);
  await guard.waitForLine(/: started sleep/);
}, { ignore: ordinaryUser() === null });
if (ordinaryUser() === null) {
  Deno.test({ name: `another user's instance: ${NO_ORDINARY_USER}`, ignore: true, fn: () => {} });
}

test("under launchd it waits for the volume and for the lock, and starts when they come", async ({ home, vm }) => {
  const away = `${home.root}/away`;
  Deno.renameSync(home.lima, away);
  await using guard = run(vm, { env: asJob(vm, 6) });
  await guard.waitForLine(/missing; looks again in 5 s/);
  Deno.renameSync(away, home.lima);
  const lock = hold(vm.path("lima-guard.lock"));
  await guard.waitForLine(/waits up to 5 s for another lima-guard/);
  lock[Symbol.dispose]();
  await guard.waitForLine(/Running after/);
  assert.equal((await stopRun(guard)).status, 0);
  await assertDown(vm);
});

test("what a dead run left behind is cleared first", async ({ vm, bystander }) => {
  for (const file of ["ha.pid", "vz.pid"]) vm.pidFile(file, bystander.pid);
  vm.staleSocket("ha.sock");
  await using guard = await running(vm);
  await eventually(() => assert.deepEqual(events(vm), ["pre", "start", "running"]));
  assert.equal((await stopRun(guard)).status, 0);
  await assertDown(vm);
});

test("--dry-run prints the plan and the command, and starts nothing", async ({ vm, bystander }) => {
  vm.pidFile("vz.pid", bystander.pid);
  const before = vm.files();
  const result = await run(vm, { flags: ["--dry-run"] }).result();
  assert.equal(result.status, 0, result.stderr);
  assert.match(result.stdout, /would remove .*vz\.pid/);
  assert.ok(result.stdout.includes(foreground(vm).join(" ")), `the command is missing:\n${result.stdout}`);
  assert.equal(vm.has("standin.starts"), false);
  assert.deepEqual(vm.files(), before);
});

test("the budget is what launchd grants, more than 60 s too", async ({ home, vm }) => {
  const env = asJob(vm, 90);
  await using guard = await running(vm, { env });
  assert.equal((await stopRun(guard)).status, 0);
  // 90 s: 75 s of grace, of which the guest has two thirds.
  assert.equal(last(vm, "stop").budgetS, 90, home.root);
});

// ── a command that is not the host agent ──

/** Like `colima start -f`: the host agent in the background, in a session of its own; then it waits forever. */
function colima(vm: Instance, onTerm = "sub { print STDERR qq(colima ends\\n); exit 0 }"): string[] {
  const text = `#!/usr/bin/perl
use POSIX ();
$SIG{TERM} = ${onTerm === "IGNORE" ? "'IGNORE'" : onTerm};
my $pid = fork;
if ($pid == 0) {
    $SIG{TERM} = 'DEFAULT';
    POSIX::setsid();
    exec @ARGV;
}
$SIG{CHLD} = 'IGNORE';
select undef, undef, undef, 0.05 while 1;
`;
  return [script(vm, "colima", text), ...foreground(vm)];
}

test("the command starts the agent in the background: a stop takes the stages, the command comes last", async ({ vm }) => {
  await using guard = await running(vm, { command: colima(vm) });
  const pid = await agentPid(vm);
  assert.notEqual(pid, last(vm, "start").pid);
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.equal(vm.guestDisk(), "clean");
  assert.ok(stderr.indexOf("colima ends") > stderr.indexOf("stage agent"), stderr);
  assert.deepEqual(vm.log().filter((line) => line.startsWith("Received SIG")).length, 1);
  await assertDown(vm);
});

test(
  "the command starts the agent in the background: a hung machine and a hung command are killed in time",
  async ({ vm }) => {
    await using guard = await running(vm, { command: colima(vm, "IGNORE"), flags: ["--timeout", "5"] });
    const { status, stderr, seconds } = await stopRun(guard);
    assert.equal(status, 0, stderr);
    assert.ok(seconds < 5, `${seconds} s of 5`);
    await assertDown(vm);
    assert.deepEqual(vm.home.processes().filter((line) => line.includes("/colima")), []);
  },
  { conf: { stop: "hang" } },
);

for (const how of ["SIGKILL", "limactl stop"] as const) {
  test(`the command waits forever, its agent ends (${how}): the command is stopped, and the status shows how the agent ended`, async ({ home, vm }) => {
    await using guard = await running(vm, { command: colima(vm) });
    if (how === "SIGKILL") Deno.kill(await agentPid(vm), "SIGKILL");
    else assert.equal((await limactl(home, ["stop", "vm"])).status, 0);
    const { status, stderr } = await guard.result();
    const expected = how === "SIGKILL" ? 1 : 0;
    assert.equal(status, expected, stderr);
    assert.match(stderr, /colima ends/);
    assert.deepEqual([last(vm, "end").requested, last(vm, "end").status], [false, expected]);
    await assertDown(vm);
  });
}

test("the command brings the VM up after more than a quarter of an hour: it is supervised all the same", async ({ home, vm }) => {
  const [late, go] = [`${home.root}/late`, `${home.root}/go`];
  const twist = guardWith({ hurry: true, ahead: { file: late, ms: 16 * 60_000 } });
  const text = `until [ -e '${go}' ]; do sleep 0.05; done; ${home.limactl} start vm </dev/null >/dev/null 2>&1`;
  const command = shell(`${text}; exec sleep 1000`);
  await using guard = run(vm, { command, script: twist.script!, env: twist.env! });
  await guard.waitForLine(/: started /);
  Deno.writeTextFileSync(late, "");
  await guard.waitForLine(/: is still not Running/);
  Deno.writeTextFileSync(go, "");
  await guard.waitForLine(/: Running after /);
  Deno.kill(await agentPid(vm), "SIGKILL");
  const { status, stderr } = await guard.result();
  assert.equal(status, 1, stderr);
  assert.equal(stderr.match(/is still not Running/g)!.length, 1);
  await assertDown(vm);
});

/** Starts the host agent in a session of its own, as `limactl start` without `--foreground` does, and ends. */
function inBackground(vm: Instance, until: string, code: number): string[] {
  const text = `#!/bin/sh
(
  ${until === "" ? "while kill -0 $$ 2>/dev/null; do sleep 0.05; done; sleep 1" : ":"}
  exec setsid "$@" </dev/null >/dev/null 2>&1
) &
${until}
exit ${code}
`;
  return [script(vm, "in-background", text), ...foreground(vm)];
}

const MOMENTS: readonly (readonly [string, (vm: Instance) => string, ...0[]])[] = [
  ["while there is an ha.pid and nothing else", (vm) => `until [ -s '${vm.path("ha.pid")}' ]; do sleep 0.05; done`],
  ["once it runs", (vm) => `until grep -q '"running":true' '${vm.path("ha.stdout.log")}'; do sleep 0.05; done`],
  // One that failed leaves none behind.
  ["a second before there is an agent", () => "", 0],
];

for (const [moment, until, ...codes] of MOMENTS) {
  for (const code of codes.length > 0 ? codes : [0, 1]) {
    test(
      `the command ends with ${code} ${moment}, and the agent lives: it is adopted and stopped`,
      async ({ vm, bystander }) => {
        vm.pidFile("qemu.pid", bystander.pid);
        await using guard = run(vm, { command: inBackground(vm, until(vm), code) });
        await guard.waitForLine(/is adopted; .*--foreground/);
        const pid = await agentPid(vm);
        await guard.waitForLine(/: Running after /);
        const { status, stderr } = await stopRun(guard);
        assert.equal(status, 0, stderr);
        assert.ok(!isAlive(pid));
        assert.equal(vm.guestDisk(), "clean");
        assert.deepEqual([last(vm, "end").requested, last(vm, "end").stage], [true, "agent"]);
        await assertDown(vm);
      },
      { ignore: !LINUX },
    );
  }
}

for (const how of ["SIGKILL", "limactl stop"] as const) {
  test(`the agent that the command left behind ends (${how}): the status tells how`, async ({ home, vm }) => {
    await using guard = run(vm, { command: inBackground(vm, MOMENTS[1]![1](vm), 0) });
    await guard.waitForLine(/is adopted/);
    await guard.waitForLine(/: Running after /);
    if (how === "SIGKILL") Deno.kill(await agentPid(vm), "SIGKILL");
    else assert.equal((await limactl(home, ["stop", "vm"])).status, 0);
    const { status, stderr } = await guard.result();
    assert.equal(status, how === "SIGKILL" ? 1 : 0, stderr);
    await assertDown(vm);
  }, { ignore: !LINUX });
}

test("a second --run is asked to stop while the first one supervises: it leaves at once, with 0 and one line", async ({ vm }) => {
  await using first = await running(vm);
  await using second = run(vm, { env: asJob(vm, 60) });
  await second.waitForLine(/waits up to \d+ s for lima-guard --run, PID/);
  const { status, stderr, seconds } = await stopRun(second);
  assert.equal(status, 0, stderr);
  assert.ok(seconds < 20, `${seconds} s of 60`);
  assert.match(stderr, new RegExp(`leaves: lima-guard --run, PID ${first.pid} supervises it$`, "m"));
  assert.ok(isAlive(first.pid) && isAlive(await agentPid(vm)));
  assert.deepEqual(events(vm), ["start", "running"]);
  assert.equal((await stopRun(first)).status, 0);
  assert.equal(vm.guestDisk(), "clean");
});

test("both are asked to stop at once, as at a shutdown: one stop, one set of stages", async ({ vm }) => {
  await using first = await running(vm);
  await using second = run(vm, { env: asJob(vm, 60) });
  await second.waitForLine(/waits up to \d+ s for lima-guard --run, PID/);
  const ends = await Promise.all([stopRun(first), stopRun(second)]);
  assert.deepEqual(ends.map(({ status }) => status), [0, 0], ends.map(({ stderr }) => stderr).join("\n"));
  assert.deepEqual(events(vm), ["start", "running", "stop", "stage", "stage", "end"]);
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
}, { conf: { stop: "slow:700" } });

test("the agent ends just as the guard finds it Running: it is noticed all the same", async ({ home, vm }) => {
  const at = "before append .*jsonl";
  // The first line is the start, the second one `running`.
  const up = { at, nth: 2, file: `${home.root}/up` };
  const twist = guardWith({ stays: [up] });
  await using guard = run(vm, { command: colima(vm), script: twist.script!, env: twist.env! });
  await meanwhile(up, async () => {
    const pid = await agentPid(vm);
    Deno.kill(pid, "SIGKILL");
    await waitForExit(pid);
  });
  const { status, stderr } = await guard.result({ timeoutMs: 10_000 });
  assert.equal(status, 1, stderr);
  await assertDown(vm);
});

test("a script of the administrator's own that becomes limactl", async ({ vm }) => {
  const text = `#!/bin/sh\nexec '${vm.home.limactl}' start "$1" --foreground\n`;
  await using guard = await running(vm, { command: [script(vm, "start-it", text), "vm"] });
  assert.equal(await agentPid(vm), last(vm, "start").pid);
  assert.equal((await stopRun(guard)).status, 0);
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
});

// ── adoption ──

test("a healthy agent is adopted, and its end by limactl stop is a good one", async ({ home, vm }) => {
  await using agent = await startAgent(vm);
  await using guard = run(vm);
  await guard.waitForLine(/is adopted/);
  assert.equal((await limactl(home, ["stop", "vm"])).status, 0);
  const result = await guard.result();
  assert.equal(result.status, 0, result.stderr);
  assert.equal(vm.starts().length, 1, "the command was started");
  const start = last(vm, "start");
  assert.deepEqual([start.adopted, start.pid], [true, agent.pid]);
  assert.deepEqual([last(vm, "end").requested, last(vm, "end").status], [false, 0]);
  await assertDown(vm);
});

test("an adopted agent that is killed: 1, and what it left is cleared", async ({ vm }) => {
  await using agent = await startAgent(vm);
  await using guard = run(vm);
  await guard.waitForLine(/is adopted/);
  agent.signal("SIGKILL");
  const result = await guard.result();
  assert.equal(result.status, 1, result.stderr);
  await assertDown(vm);
});

test("an adopted agent is stopped by the stop stages", async ({ vm, bystander }) => {
  await using agent = await startAgent(vm);
  vm.pidFile("qemu.pid", bystander.pid);
  await using guard = run(vm);
  await guard.waitForLine(/is adopted/);
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.equal((await agent.status).code, 0);
  assert.equal(vm.guestDisk(), "clean");
  assert.deepEqual([last(vm, "end").requested, last(vm, "end").stage], [true, "agent"]);
  await assertDown(vm);
});

/** What an `rm` by hand leaves of a running instance. */
function withoutFiles(vm: Instance): void {
  for (const file of vm.files().filter((file) => /\.(pid|sock)$/.test(file))) vm.remove(file);
}

test("the files of an adopted agent are removed by hand: it is known all the same, and stopped", async ({ vm }) => {
  await using agent = await startAgent(vm);
  await using guard = run(vm);
  await guard.waitForLine(/is adopted/);
  await eventually(() => assert.equal(events(vm).at(-1), "start"));
  withoutFiles(vm);
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(!agent.isAlive());
  assert.equal(vm.guestDisk(), "clean");
  assert.equal(last(vm, "end").stage, "agent");
});

/** lima-guard was killed, and the files of its VM, which lives, were removed by hand. Returns the PID of the host agent. */
async function lost(vm: Instance): Promise<number> {
  await using guard = await running(vm);
  const pid = await agentPid(vm);
  await eventually(() => assert.equal(events(vm).at(-1), "running"));
  guard.signal("SIGKILL");
  await guard.status;
  withoutFiles(vm);
  return pid;
}

test("lima-guard is killed and the files are removed by hand: what the journal knows of is searched for", async ({ vm }) => {
  const pid = await lost(vm);
  const pre = await runGuard(vm.home, ["--pre", "vm"]);
  assert.equal(pre.status, 75, pre.stdout);
  assert.match(pre.stdout, new RegExp(`host agent ${pid} does not answer`));
  const stop = await runGuard(vm.home, ["--stop", "vm"]);
  assert.equal(stop.status, 0, stop.stderr);
  assert.match(stop.stdout, /stopped gracefully/);
  assert.equal(isAlive(pid), false);
  const after = await runGuard(vm.home, ["--stop", "vm"]);
  assert.match(after.stdout, /already stopped/);
});

test("whether the journal knows of a VM cannot be found out: it is searched for all the same", async ({ vm }) => {
  const pid = await lost(vm);
  const file = vm.path("lima-guard.jsonl");
  const journal = Deno.readTextFileSync(file);
  // Its boot was not known when it was written.
  Deno.writeTextFileSync(file, journal.replaceAll(/"boot":"[^"]*"/g, '"boot":""'));
  const boot = await runGuard(vm.home, ["--pre", "vm"]);
  assert.deepEqual([boot.status, /does not answer/.test(boot.stdout)], [75, true], boot.stdout);
  Deno.removeSync(file);
  Deno.mkdirSync(file);
  const unread = await runGuard(vm.home, ["--pre", "vm"]);
  assert.deepEqual([unread.status, /does not answer/.test(unread.stdout)], [75, true], unread.stdout);
  assert.equal((await runGuard(vm.home, ["--stop", "vm"])).status, 0);
  assert.equal(isAlive(pid), false);
});

test("ps fails once while lima-guard begins: --stop proves it all the same, once its VM runs", async ({ vm }) => {
  await using guard = await running(vm, guardWith({ programs: { ps: { to: 1, does: "answer", code: 1 } } }));
  const { status, stdout, stderr } = await runGuard(vm.home, ["--stop", "vm"]);
  assert.equal(status, 0, stdout + stderr);
  assert.match(stdout, /stopped gracefully/);
  assert.equal((await guard.status).code, 0);
});

test("a damaged ha.pid does not hide the agent that is adopted", async ({ vm }) => {
  await using agent = await startAgent(vm);
  vm.pidFile("ha.pid", "");
  await using guard = run(vm);
  await guard.waitForLine(new RegExp(`host agent ${agent.pid} is adopted`));
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.ok(!agent.isAlive());
  assert.equal(vm.guestDisk(), "clean");
});

test("the guard is killed: the next one adopts the agent that lives on", async ({ vm }) => {
  await using first = await running(vm);
  const pid = await agentPid(vm);
  first.signal("SIGKILL");
  await first.status;
  await using second = run(vm);
  await second.waitForLine(new RegExp(`host agent ${pid} is adopted`));
  await eventually(() => assert.match(vm.read("lima-guard.jsonl") ?? "", /"adopted":true/));
  const [shown] = (await runGuard(vm.home, ["--status", "--json", "vm"])).json().instances;
  assert.equal(shown.lastStopKind, "none", "it has not stopped yet");
  const { status, stderr } = await stopRun(second);
  assert.equal(status, 0, stderr);
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
});

test("lima-guard and the agent are killed: the next lima-guard repairs, keeps the logs, and starts", async ({ vm }) => {
  await using first = await running(vm);
  const pid = await agentPid(vm);
  first.signal("SIGKILL");
  await first.status;
  Deno.kill(pid, "SIGKILL");
  await waitForExit(pid);
  const [out, err] = ["ha.stdout.log", "ha.stderr.log"].map((file) => vm.read(file)!);
  assert.ok(out!.includes("running") && err! !== "");
  await using second = await running(vm);
  assert.deepEqual(events(vm), ["start", "running", "pre", "start", "running"]);
  assert.equal(vm.read("lima-guard.previous/ha.stdout.log"), out);
  assert.equal(vm.read("lima-guard.previous/ha.stderr.log"), err);
  assert.equal((await stopRun(second)).status, 0);
});

test("logs are kept after an unclean end only, and no more than 256 KiB of each", async ({ vm }) => {
  await using first = await running(vm);
  assert.equal((await stopRun(first)).status, 0);
  await using second = await running(vm);
  assert.equal(vm.has("lima-guard.previous"), false, "the run before ended well");
  vm.write("ha.stderr.log", `begin\n${"x".repeat(300 * 1024)}\nend\n`);
  Deno.kill(await agentPid(vm), "SIGKILL");
  assert.equal((await second.result()).status, 137);
  await using third = await running(vm);
  const kept = vm.read("lima-guard.previous/ha.stderr.log")!;
  assert.equal(kept.length, 256 * 1024);
  assert.ok(kept.endsWith("\nend\n"));
  assert.equal((await stopRun(third)).status, 0);
});

test(
  "after a stop that had to kill, the logs are kept, the serial console too, and --status has a note",
  async ({ home, vm }) => {
    await using first = await running(vm, { flags: ["--timeout", "4"] });
    vm.write("serial.log", "a stop job is running\n");
    assert.equal((await stopRun(first)).status, 0);
    vm.conf({ stop: "" });
    await using second = await running(vm);
    assert.match(vm.read("lima-guard.previous/serial.log")!, /a stop job/);
    assert.ok(vm.has("lima-guard.previous/ha.stderr.log"));
    assert.match((await runGuard(home, ["--status", "vm"])).stdout, /lost its power at the last stop/);
    assert.equal((await stopRun(second)).status, 0);
  },
  { conf: { stop: "hang" } },
);

test("a host agent that is killed during its stop has cut its guest off: its end is known", async ({ vm }) => {
  await using guard = await running(vm);
  const pid = await agentPid(vm);
  guard.signal("SIGTERM");
  await eventually(() => assert.ok(vm.log().some((line) => line.startsWith("Received SIGTERM"))));
  Deno.kill(pid, "SIGKILL");
  assert.equal((await guard.result()).status, 0);
  const { stage, cut } = last(vm, "end");
  assert.deepEqual([stage, cut], ["agent", "SIGKILL ended it"]);
}, { conf: { stop: "slow:60000" } });

test("after a stop in which the host agent cut its guest off, the logs are kept", async ({ vm }) => {
  await using first = await running(vm);
  assert.equal((await stopRun(first)).status, 0);
  assert.equal(last(vm, "end").stage, "agent");
  vm.conf({ stop: "" });
  await using second = await running(vm);
  assert.match(vm.read("lima-guard.previous/ha.stderr.log")!, /CanRequestStop/);
  assert.equal((await stopRun(second)).status, 0);
}, { conf: { stop: "cannot-request-stop" } });

test("an event behind `exiting` makes no crash of a clean end", async ({ home, vm }) => {
  await using _agent = await startAgent(vm);
  await using guard = run(vm);
  await guard.waitForLine(/is adopted/);
  assert.equal((await limactl(home, ["stop", "vm"])).status, 0);
  assert.equal((await guard.result()).status, 0);
}, { conf: { event_after_exiting: 1 } });

// ── Running, and booted ──

test(
  "the VM runs, and later its guest is up: the journal has both, and a session is made at once then",
  async ({ vm }) => {
    await using guard = run(vm, { flags: ["-v"] });
    await guard.waitForLine(/: Running after /);
    assert.equal(journal(vm).some(({ event }) => event === "booted"), false);
    await guard.waitForLine(/the guest is up after/);
    await guard.waitForLine(/session with the guest(?!.*session with the guest)/);
    await eventually(() => assert.equal(journal(vm).at(-1)!.event, "booted"));
    assert.ok(last(vm, "booted").seconds - last(vm, "running").seconds > 1);
    assert.equal((await stopRun(guard)).status, 0);
  },
  { conf: { vmtype: "qemu", boot_ms: 4000 } },
);

for (const file of ["x.drv.pid", "lima-driver-x-ha.pid"]) {
  test(`${file} names a living process, and no driver is up: it is not Running`, async ({ vm, bystander }) => {
    await using guard = run(vm, { flags: ["--timeout", "2"] });
    await eventually(() => assert.ok(vm.has("ha.sock")));
    vm.pidFile(file, bystander.pid);
    // Some looks later.
    const began = performance.now();
    await eventually(() => assert.ok(performance.now() - began > 1500));
    vm.remove(file);
    assert.equal((await stopRun(guard)).status, 0);
    assert.equal(journal(vm).some(({ event }) => event === "running"), false);
  }, { conf: { stay_at: "ha.sock" } });
}

// ── one start at a time ──

test("instances of one LIMA_HOME start one after another: none starts while another one boots", async ({ home, vm }) => {
  const { command, tell } = onceReleased(vm);
  await using guards = new AsyncDisposableStack();
  const first = guards.use(run(vm, { command }));
  await first.waitForLine(/^waiting$/);
  const others = ["two", "three"].map((name) => home.instance(name));
  const waiting = others.map((other) => guards.use(run(other)));
  for (const guard of waiting) await guard.waitForLine(/waits for its turn: another instance is starting/);
  for (const other of others) assert.equal(other.has("standin.starts"), false, "it was started out of turn");
  tell();
  for (const guard of [first, ...waiting]) await guard.waitForLine(/Running after/);
  const writtenMs = (of: Instance, file: string) => Deno.statSync(of.path(file)).mtime!.getTime();
  const [a, b] = others.toSorted((x, y) => writtenMs(x, "standin.starts") - writtenMs(y, "standin.starts"));
  assert.ok(writtenMs(b!, "standin.starts") >= writtenMs(a!, "vz.pid"), "one was started before the other was Running");
  const results = await Promise.all([first, ...waiting].map((guard) => stopRun(guard, 30_000)));
  assert.deepEqual(results.map(({ status }) => status), [0, 0, 0]);
  for (const instance of [vm, ...others]) await assertDown(instance);
});

test("an instance that got its turn and is blocked now gives it back", async ({ home, vm }) => {
  Deno.mkdirSync(`${home.lima}/_lima-guard`);
  const turn = `${home.lima}/_lima-guard/start.lock`;
  const other = hold(turn);
  await using guard = run(vm);
  await guard.waitForLine(/waits for its turn/);
  Deno.mkdirSync(vm.path("ssh.config"));
  other[Symbol.dispose]();
  await guard.waitForLine(/blocked; looks again in 5 s/);
  hold(turn)[Symbol.dispose]();
  assert.equal((await stopRun(guard)).status, 0);
});

test("a turn that was waited for too long is not taken later, when it is no longer wanted", async ({ home, vm }) => {
  Deno.mkdirSync(`${home.lima}/_lima-guard`);
  const turn = `${home.lima}/_lima-guard/start.lock`;
  const other = hold(turn);
  await using guard = run(vm, guardWith({ lockMs: 200 }));
  await guard.waitForLine(/starts out of turn/);
  await guard.waitForLine(/Running after/);
  other[Symbol.dispose]();
  // The kernel may still give it to the wait that was given up, for a moment.
  await eventually(() => hold(turn)[Symbol.dispose]());
  assert.equal((await stopRun(guard)).status, 0);
});

test("a turn that cannot be asked for now is waited for: the trouble may pass", async ({ home, vm }) => {
  const turn = `${home.lima}/_lima-guard/start.lock`;
  Deno.mkdirSync(`${home.lima}/_lima-guard`);
  Deno.writeTextFileSync(turn, "");
  await using guard = run(vm, guardWith({ lockedOut: turn }));
  await guard.waitForLine(/waits for its turn: Too many open files/);
  assert.equal(vm.has("standin.starts"), false);
  Deno.writeTextFileSync(`${turn}.open`, "");
  await guard.waitForLine(/Running after/);
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0);
  assert.doesNotMatch(stderr, /without waiting for its turn/);
});

test("a turn that can never be asked for keeps no instance from starting", async ({ home, vm }) => {
  Deno.mkdirSync(`${home.lima}/_lima-guard/start.lock`, { recursive: true });
  await using guard = run(vm);
  await guard.waitForLine(/Running after/);
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0);
  assert.match(stderr, /starts without waiting for its turn: .*directory/);
  assert.doesNotMatch(stderr, /waits for its turn/);
});

test("an instance that fails to start gives its turn back", async ({ home, vm }) => {
  vm.conf({ exit_after_ms: 300, exit_code: 1 });
  await using failing = run(vm);
  await failing.waitForLine(/started /);
  const other = home.instance("other");
  await using guard = await running(other);
  assert.equal((await failing.result()).status, 1);
  assert.equal((await stopRun(guard)).status, 0);
});

// ── the session kept ready ──

/** Running, with a session with the guest that has been opened and waits for its word. */
async function withSession(vm: Instance, options: Parameters<typeof run>[1] = {}) {
  const guest = await sshGuest(vm);
  const guard = run(vm, options);
  await sessionReady(guest);
  return { guest, guard };
}

/** The guest runs the script that waits: sudo has come that far. */
function sessionReady(guest: Guest, sessions = 1): Promise<void> {
  return eventually(() => {
    assert.ok(guest.log().filter((line) => line.startsWith("ssh:")).length >= sessions, guest.log().join("\n"));
    assert.ok(guest.log().filter((line) => line.startsWith("sudo")).length >= sessions, guest.log().join("\n"));
  }, { withinMs: 45_000 });
}

/** A guest that is still there when the guard looks, as guests are. */
const NEEDS_SSHD = { ignore: NO_SSHD !== undefined, conf: { guest_off_ms: 700 } };

test("a session is ready: at the stop no other one is opened, and the guest powers off", async ({ vm }) => {
  const { guest, guard } = await withSession(vm);
  await using _guest = guest;
  await using _guard = guard;
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.equal(last(vm, "end").stage, "guest");
  assert.equal(guest.log().filter((line) => line.startsWith("ssh:")).length, 1, guest.log().join("\n"));
  assert.ok(guest.log().includes("systemctl poweroff"), guest.log().join("\n"));
  assert.equal(vm.guestDisk(), "clean");
  assert.deepEqual(vm.log().filter((line) => line.startsWith("Received SIG")), []);
  await assertDown(vm);
}, NEEDS_SSHD);

test("the guest is gone before the guard can look: it was the word that did it", async ({ home, vm }) => {
  // ps goes through a gate, which is closed just before the stop.
  const gate = { at: "before run .*/ps$", file: `${home.root}/gate` };
  Deno.writeTextFileSync(`${gate.file}.go`, "");
  const twist = guardWith({ stays: Array.from({ length: 20 }, (_, n) => ({ ...gate, nth: n + 1 })) });
  const { guest, guard } = await withSession(vm, { script: twist.script!, env: twist.env! });
  await using _guest = guest;
  await using _guard = guard;
  const pid = await agentPid(vm);
  for (const end of ["go", "here"]) Deno.removeSync(`${gate.file}.${end}`);
  guard.signal("SIGTERM");
  await meanwhile(gate, () => waitForExit(pid));
  const { status, stderr } = await guard.result();
  assert.equal(status, 0, stderr);
  assert.equal(last(vm, "end").stage, "guest", stderr);
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
}, NEEDS_SSHD);

test("a session is ready: ssh may fail when it is used", async ({ home, vm }) => {
  const tools = `${home.root}/tools`;
  Deno.mkdirSync(tools);
  Deno.symlinkSync("/usr/bin/ssh", `${tools}/ssh`);
  const { guest, guard } = await withSession(vm, { env: { PATH: `${home.bin}:${tools}` } });
  await using _guest = guest;
  await using _guard = guard;
  Deno.removeSync(`${tools}/ssh`);
  Deno.writeTextFileSync(`${tools}/ssh`, "#!/bin/sh\nexit 255\n", { mode: 0o755 });
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.equal(last(vm, "end").stage, "guest", stderr);
  assert.equal(vm.guestDisk(), "clean");
}, NEEDS_SSHD);

test("the session breaks: another one is opened", async ({ home, vm }) => {
  const { guest, guard } = await withSession(vm);
  await using _guest = guest;
  await using _guard = guard;
  const [ssh] = home.processes().filter((line) => /^\d+ \S*ssh -F /.test(line));
  assert.ok(ssh, home.processes().join("\n"));
  Deno.kill(Number(ssh.split(" ")[0]), "SIGKILL");
  await sessionReady(guest, 2);
  assert.equal((await stopRun(guard)).status, 0);
  assert.equal(last(vm, "end").stage, "guest");
  assert.equal(guest.log().filter((line) => line.startsWith("ssh:")).length, 2);
}, NEEDS_SSHD);

test("an agent that is adopted gets a session too", async ({ vm }) => {
  await using guest = await sshGuest(vm);
  await using _agent = await startAgent(vm);
  await using guard = run(vm);
  await sessionReady(guest);
  assert.equal((await stopRun(guard)).status, 0);
  assert.equal(last(vm, "end").stage, "guest");
  assert.equal(vm.guestDisk(), "clean");
}, NEEDS_SSHD);

test("the guest powers off by itself: its session does not keep lima-guard", async ({ vm }) => {
  const { guest, guard } = await withSession(vm);
  await using _guest = guest;
  await using _guard = guard;
  guest.powerOff();
  const { status, stderr } = await guard.result();
  assert.equal(status, 1, stderr);
  assert.equal(last(vm, "end").requested, false);
  await assertDown(vm);
}, NEEDS_SSHD);

test(
  "the guard is killed: its session with the guest ends with it, and the guest is not powered off",
  async ({ home, vm }) => {
    const { guest, guard } = await withSession(vm);
    await using _guest = guest;
    guard.signal("SIGKILL");
    await guard.status;
    await eventually(() => assert.deepEqual(home.processes().filter((line) => /^\d+ \S*ssh -F /.test(line)), []));
    assert.ok(isAlive(await agentPid(vm)));
    assert.equal(guest.log().includes("systemctl poweroff"), false);
    await using next = run(vm);
    await next.waitForLine(/is adopted/);
    assert.equal((await stopRun(next)).status, 0);
  },
  NEEDS_SSHD,
);

const NO_STRACE = !LINUX || !has("/usr/bin/strace");

test(
  "the word is the first thing after the signal: before it no process is started and no file is looked at",
  async ({ vm }) => {
    const { guest, guard } = await withSession(vm);
    await using _guest = guest;
    await using _guard = guard;
    const trace = `${vm.home.root}/trace`;
    await using _strace = await tracing(guard.pid, trace);
    assert.equal((await stopRun(guard)).status, 0);
    const lines = Deno.readTextFileSync(trace).split("\n");
    const asked = lines.findIndex((line) => line.includes("--- SIGTERM "));
    const word = lines.findIndex((line) => /write\(\d+, "poweroff \d+\\n"/.test(line));
    assert.ok(asked >= 0 && word > asked, `no word after the signal:\n${lines.slice(asked).join("\n")}`);
    assert.deepEqual(lines.slice(asked, word).filter((line) => /(exec|clone|fork|open|stat|unlink)/.test(line)), []);
  },
  { ignore: NO_SSHD !== undefined || NO_STRACE },
);

async function tracing(pid: number, file: string): Promise<AsyncDisposable> {
  const calls = "trace=write,writev,sendto,sendmsg,execve,execveat,clone,clone3,fork,vfork,openat,statx,lstat,unlink";
  const strace = new Deno.Command("/usr/bin/strace", {
    args: ["-f", "-ttt", "-e", calls, "-o", file, "-p", String(pid)],
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  let said = "";
  const reading = (async () => {
    for await (const text of strace.stderr.pipeThrough(new TextDecoderStream())) said += text;
  })();
  await eventually(() => assert.match(said, /attached/));
  return {
    async [Symbol.asyncDispose]() {
      await strace.status;
      await reading;
    },
  };
}

// ── when the guard itself is in trouble ──

test("a full disk stops neither a stop nor the status", async ({ home }) => {
  using mount = tinyMount(home.lima);
  const vm = home.instance("full");
  await using guard = await running(vm);
  // What is left of a page that is begun is no full disk yet.
  const begun = vm.read("lima-guard.jsonl")!.length % 4096;
  Deno.writeTextFileSync(vm.path("lima-guard.jsonl"), `${" ".repeat(4095 - begun)}\n`, { append: true });
  mount.fill();
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.match(stderr, /no journal: /);
  await assertDown(vm);
}, { ignore: whyNoMount() !== undefined });

test("a full disk does not stop a start", async ({ home }) => {
  using mount = tinyMount(home.lima);
  const vm = home.instance("full");
  mount.fill();
  await using guard = run(vm, { command: shell("echo up; exec sleep 1000") });
  await guard.waitForLine(/^up$/, { stream: "stdout" });
  await guard.waitForLine(/no journal: /);
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
}, { ignore: whyNoMount() !== undefined });

test("an instance directory that is read-only: it runs, and it stops", async ({ vm }) => {
  using _readOnly = readOnlyDir(vm.dir);
  await using guard = run(vm, { command: shell("echo up; exec sleep 1000") });
  await guard.waitForLine(/^up$/, { stream: "stdout" });
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.match(stderr, /no journal: /);
}, { ignore: whyNoReadOnlyDir() !== undefined });

test("an instance directory that becomes read-only: the machine is stopped all the same", async ({ vm }) => {
  await using guard = await running(vm);
  const pid = await agentPid(vm);
  {
    using _readOnly = readOnlyDir(vm.dir);
    const { status, stderr } = await stopRun(guard);
    assert.equal(isAlive(pid), false);
    assert.match(stderr, /no journal: /);
    // vz.pid is left, and could not be removed: that is said.
    assert.match(stderr, /vz\.pid/);
    assert.ok(status === 0 || status === 1, stderr);
  }
}, { ignore: whyNoReadOnlyDir() !== undefined });

test("LIMA_HOME is read-only: the turn to start is not waited for", async ({ home, vm }) => {
  using _readOnly = readOnlyDir(home.lima);
  await using guard = run(vm, { command: shell("echo up; exec sleep 1000") });
  await guard.waitForLine(/^up$/, { stream: "stdout" });
  await guard.waitForLine(/starts without waiting for its turn/);
  assert.equal((await stopRun(guard)).status, 0);
}, { ignore: whyNoReadOnlyDir() !== undefined });

/** lima-guard with an internal error, which comes with SIGUSR1 (thrown) or SIGUSR2 (a promise that fails). */
function faulty(vm: Instance, env: Record<string, string> = {}) {
  const preload = script(
    vm,
    "fault.js",
    `Deno.addSignalListener("SIGUSR1", () => { throw new Error("thrown for the test"); });
Deno.addSignalListener("SIGUSR2", () => void Promise.reject(new Error("rejected for the test")));
`,
  );
  const args = ["run", "-A", ...denoFlags(), "--preload", preload, `${project}/lima_guard.ts`, "--run", vm.name, "--"];
  const child = new Deno.Command(Deno.execPath(), {
    args: [...args, ...foreground(vm)],
    env: { ...vm.home.env, DENO_DIR: denoDir(), DENO_NO_UPDATE_CHECK: "1", NO_COLOR: "1", ...env },
    clearEnv: true,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  let said = "";
  const reading = (async () => {
    for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) said += text;
  })();
  return { child, said: () => said, reading };
}

test("an internal error of lima-guard does not kill the machine, and lima-guard continues", async ({ vm }) => {
  const { child, said, reading } = faulty(vm);
  await eventually(() => assert.match(said(), /Running after/), { withinMs: 45_000 });
  const pid = await agentPid(vm);
  for (const [signal, words] of [["SIGUSR1", "thrown for the test"], ["SIGUSR2", "rejected for the test"]] as const) {
    child.kill(signal);
    await eventually(() => assert.ok(said().includes(words), said()));
  }
  assert.ok(isAlive(pid), "the host agent was killed");
  child.kill("SIGTERM");
  const { code } = await within(child.status, 20_000, said);
  await reading;
  assert.equal(code, 0, said());
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
});

test("no process reads what lima-guard prints: it continues", async ({ vm }) => {
  const { child, said, reading } = faulty(vm);
  await eventually(() => assert.match(said(), /Running after/), { withinMs: 45_000 });
  await child.stderr.cancel().catch(() => {});
  child.kill("SIGTERM");
  const { code } = await within(child.status, 20_000, said);
  await reading.catch(() => {});
  assert.equal(code, 0);
  assert.equal(vm.guestDisk(), "clean");
});
