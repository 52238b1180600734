/** Further inputs that once led to a wrong answer: dates of the future, pipes in odd places, answers of another shape. */

import assert from "node:assert/strict";
import { judge } from "../lima_guard.ts";
import { guardWith } from "./helpers/guard_with.ts";
import {
  denoFlags,
  IMPOSSIBLE_PID,
  isAlive,
  project,
  runGuard,
  spawnGuard,
  startAgent,
  startBystander,
  tempColimaHome,
  writeDaemonPid,
} from "./helpers/mod.ts";
import { JOURNAL, leavesAlone, pre, test } from "./helpers/pre.ts";
import { readDocument, stopOne } from "./helpers/stop.ts";

/** A line of the journal that `--run` wrote. */
function runLine(dir: string, event: string, more: Record<string, unknown> = {}): string {
  const time = new Date().toISOString();
  const boot = Deno.build.os === "linux" ? Deno.readTextFileSync("/proc/sys/kernel/random/boot_id").trim() : "";
  return `${JSON.stringify({ time, boot, dir, role: "run", event, ...more })}\n`;
}

test("two bad ends with a date of the future, as after a step of the clock: the next start waits once", async ({ home, k3s }) => {
  const time = new Date(Date.now() + 86_400_000).toISOString();
  k3s.write(JOURNAL, runLine(k3s.dir, "end", { time, requested: false, status: 1, ranS: 1 }).repeat(2));
  await using guard = spawnGuard(home, ["--run", "k3s", "--", "/bin/sh", "-c", "exit 7"], guardWith({ hurry: true }));
  const { status, stderr } = await guard.result({ timeoutMs: 20_000 });
  assert.equal(status, 7, stderr);
  assert.equal(stderr.match(/the last runs ended badly/g)?.length, 1, stderr);
});

for (const to of ["stdout", "stderr"] as const) {
  test(`ssh floods its ${to} without one line end: the stop keeps its time`, async ({ home, k3s }) => {
    const bin = `${home.root}/flood`;
    Deno.mkdirSync(bin);
    const flood = `#!/bin/sh\nhead -c 100000000 /dev/zero ${to === "stdout" ? "" : ">&2"}\nexec sleep 1000\n`;
    Deno.writeTextFileSync(`${bin}/ssh`, flood, { mode: 0o755 });
    await using _agent = await startAgent(k3s);
    k3s.sshConfig({ port: 9 });
    const { report, tookS } = await stopOne(k3s, { budgetS: 20, env: { PATH: `${bin}:${home.env.PATH}` } });
    assert.deepEqual([report.stage, report.status], ["agent", 0]);
    assert.ok(tookS < 12, `${tookS} s`);
  });
}

Deno.test("a program with very many options is judged at once, whosever it is", () => {
  const instance = { name: "k3s", home: "/h", dir: "/h/k3s", owner: 501 };
  const command = `/usr/bin/ld${" -a".repeat(300_000)}`;
  const row = { pid: 5, ppid: 1, stat: "S", started: "", command };
  for (const uid of [501, 502]) {
    const before = performance.now();
    assert.equal(judge({ ...row, uid }, instance, () => "different").kind, "not ours");
    assert.ok(performance.now() - before < 10_000, `${performance.now() - before} ms`);
  }
});

test("a FIFO stands where a log of the run before is to be kept: the start does not wait for a reader", async ({ home, k3s }) => {
  Deno.mkdirSync(k3s.path("lima-guard.previous"));
  new Deno.Command("mkfifo", { args: [k3s.path("lima-guard.previous/ha.stderr.log")] }).outputSync();
  k3s.write("ha.stderr.log", "last words\n");
  k3s.write("ha.stdout.log", "{}\n");
  k3s.write(JOURNAL, runLine(k3s.dir, "start", { pid: 5 }));
  await using guard = spawnGuard(home, ["--run", "k3s", "--", "/bin/sh", "-c", "exit 7"]);
  const { status, stderr } = await guard.result({ timeoutMs: 10_000 });
  assert.equal(status, 7, stderr);
  assert.match(stderr, /ha\.stderr\.log of the last run is not kept: .* is a FIFO/);
  assert.equal(k3s.read("lima-guard.previous/ha.stdout.log"), "{}\n");
});

test("lima.yaml is removed while the instance is stopped: unknown, and that is no success", async ({ home, k3s }) => {
  await using _agent = await startAgent(k3s, { conf: { stop: "slow:1500" } });
  await using guard = spawnGuard(home, ["--stop", "--json", "--timeout", "20", "k3s"]);
  await guard.waitForLine(/stage agent/);
  k3s.remove("lima.yaml");
  const [report] = readDocument(await guard.result());
  assert.deepEqual([report?.state, report?.status], ["unknown", 75]);
  assert.match(JSON.stringify(report?.blockers), /no such instance: it has no lima\.yaml/);
});

for (
  const [what, ps] of [
    ["says that there is no such process", { does: "answer", code: 1 }],
    ["prints a row that cannot be read", { does: "lie", pattern: "^ *\\d+ ", by: "x " }],
  ] as const
) {
  test(`ps ${what} once the host agent was signalled: the agent has its time all the same`, async ({ home, k3s }) => {
    await using agent = await startAgent(k3s, { conf: { stop: "slow:2500" } });
    // Without a guest to be asked there is no wait before the signal, in which ps would be asked once more.
    k3s.remove("ssh.config");
    const log = `${home.root}/log`;
    const { report } = await stopOne(k3s, { budgetS: 16, ...guardWith({ log, programs: { ps: { from: 4, ...ps } } }) });
    assert.equal(agent.isAlive(), false);
    assert.equal(k3s.guestDisk(), "clean");
    assert.deepEqual([report.state, report.status, report.stage], ["stopped", 0, "agent"]);
  });
}

Deno.test("ps says that there is no such process as Colima's daemon, which lives: its PID file stays", async () => {
  await using home = await tempColimaHome();
  home.instance("colima");
  await using daemon = await startBystander(home, {
    command: ["/opt/homebrew/bin/colima", "daemon", "start", "default"],
  });
  const file = writeDaemonPid(home, daemon.pid);
  const { status, stdout } = await runGuard(
    home,
    ["--pre", "colima"],
    guardWith({ programs: { ps: { does: "answer", code: 1 } } }),
  );
  assert.equal(status, 75, stdout);
  assert.equal(Deno.readTextFileSync(file), String(daemon.pid));
});

for (
  const [program, status] of [["/nix/store/x/bin/.colima-wrapped", 0], ["/opt/colima-0.9", 75], [
    "colima-dev",
    75,
  ]] as const
) {
  Deno.test(`Colima's daemon runs as ${program}: its PID file stays`, async () => {
    await using home = await tempColimaHome();
    home.instance("colima");
    await using daemon = await startBystander(home, { command: [program, "daemon", "start", "default", "--inotify"] });
    const file = writeDaemonPid(home, daemon.pid);
    const ran = await runGuard(home, ["--pre", "colima"]);
    assert.deepEqual([ran.status, Deno.readTextFileSync(file)], [status, String(daemon.pid)], ran.stdout);
    if (status !== 0) assert.match(ran.stdout, /under another name \(hint: ps -ww -p \d+; .*kill \d+\)/);
  });
}

test("ps hangs while the --run that is to be asked is proven: --stop leaves within its budget", async ({ home, k3s }) => {
  await using run = spawnGuard(home, ["--run", "k3s", "--", home.limactl, "start", "k3s", "--foreground"]);
  await run.waitForLine(/Running after/);
  const { report, tookS } = await stopOne(k3s, { budgetS: 2, ...guardWith({ programs: { ps: { does: "hang" } } }) });
  assert.deepEqual([report.state, report.status], ["unknown", 75]);
  assert.ok(tookS < 4, `${tookS} s`);
});

test("ha.sock is a link to a socket that answers: unknown, and nothing is removed", async ({ home, k3s }) => {
  using _socket = Deno.listen({ transport: "unix", path: `${home.root}/s` });
  Deno.symlinkSync(`${home.root}/s`, k3s.path("ha.sock"));
  k3s.pidFile("ha.pid", IMPOSSIBLE_PID);
  await leavesAlone(k3s, { state: "unknown", status: 75, blockers: [/ha\.sock: it takes connections/] });
});

test("ha.sock was moved and is a link now: its host agent answers, and is running", async ({ k3s }) => {
  await using _agent = await startAgent(k3s);
  Deno.renameSync(k3s.path("ha.sock"), `${k3s.home.root}/s`);
  Deno.symlinkSync(`${k3s.home.root}/s`, k3s.path("ha.sock"));
  const { report, status } = await pre(k3s);
  assert.deepEqual([status, report.state], [0, "running"], JSON.stringify(report));
});

const ONE_DISK = { yaml: "additionalDisks:\n- data\n" };

test("a disk's lock is a relative link to another instance: in use, and it stays", async ({ home, k3s }) => {
  home.instance("other");
  const data = home.disk("data", { inUseBy: "../../other" });
  const blockers = [new RegExp(`disk data is in use by ${home.lima}/other \\(lima-guard --stop .* other`)];
  await leavesAlone(k3s, { state: "blocked", status: 75, blockers });
  assert.equal(data.inUseBy(), "../../other");
}, ONE_DISK);

test("a disk's lock is no link, or its image is gone: Lima refuses, and that is said", async ({ home, k3s }) => {
  const data = home.disk("data");
  Deno.writeTextFileSync(data.lock, "");
  await leavesAlone(k3s, {
    state: "blocked",
    status: 75,
    blockers: [/in_use_by: it is a file, and Lima reads a link/],
  });
  Deno.removeSync(data.lock);
  Deno.removeSync(`${data.dir}/datadisk`);
  await leavesAlone(k3s, { state: "blocked", status: 75, blockers: [/datadisk: additional disk data is not there/] });
}, ONE_DISK);

test("a loop of links, or a name that is too long: unknown, and no instance is missing", async ({ home }) => {
  Deno.symlinkSync("loop", `${home.lima}/loop`);
  for (const args of [["--pre", "loop"], ["--stop", "loop"], ["--pre", "k3s", "--lima-home", `${home.lima}/loop`]]) {
    const { status, stdout } = await runGuard(home, args);
    assert.equal(status, 75, stdout);
    assert.match(stdout, /^(loop|k3s): unknown\n.*Too many levels of symbolic links.*\(hint: ls -ld /);
  }
  const { status } = await runGuard(home, ["--pre", "k3s", "--lima-home", `${home.lima}/${"x".repeat(300)}`]);
  assert.equal(status, 75);
});

test("the hint of a --run that names no instance is a whole command", async ({ home }) => {
  const { status, stderr } = await runGuard(home, ["--run", "k3x", "--", "true"]);
  assert.equal(status, 66);
  assert.match(stderr, /did you mean k3s\? lima-guard --status --lima-home \S+ k3s;/);
});

test("--status --wait in vain: the document says which instance is not up, and no instance at all is not up", async ({ home, k3s }) => {
  home.instance("off");
  await using _agent = await startAgent(k3s);
  const late = await runGuard(home, ["--status", "--wait", "1", "--json"]);
  assert.equal(late.status, 75);
  const statuses = late.json().instances.map(({ name, status }: { name: string; status: number }) => [name, status]);
  assert.deepEqual(statuses, [["k3s", 0], ["off", 75]]);
  Deno.mkdirSync(`${home.root}/empty`);
  const none = await runGuard(home, ["--status", "--wait", "1", "--lima-home", `${home.root}/empty`]);
  assert.equal(none.status, 75, none.stdout);
});

test("two host agents of one instance live: running, and that is not 0; --stop ends both", async ({ home, k3s }) => {
  await using agent = await startAgent(k3s);
  const command = ["/opt/homebrew/bin/limactl", "hostagent", "--pidfile", k3s.path("ha.pid"), "--socket"];
  await using second = await startBystander(home, { command: [...command, k3s.path("ha.sock"), "k3s"] });
  k3s.pidFile("vz.pid", second.pid);
  const { report, status } = await pre(k3s);
  assert.deepEqual([status, report.state, report.steps], [75, "running", []], JSON.stringify(report));
  assert.match(report.blockers[0]?.because ?? "", /several host agents of it live/);
  assert.equal((await runGuard(home, ["--status", "k3s"])).status, 1);
  const stopped = await stopOne(k3s, { budgetS: 8 });
  assert.equal(stopped.status, 0, stopped.stdout);
  assert.deepEqual([agent.isAlive(), isAlive(second.pid)], [false, false]);
});

test("the program of an event is killed early: that is not called thirty seconds", async ({ home }) => {
  const program = `${home.root}/event`;
  Deno.writeTextFileSync(program, "#!/bin/sh\nkill -9 $PPID\n", { mode: 0o755 });
  const command = ["--", "/bin/sh", "-c", "sleep 2"];
  await using guard = spawnGuard(home, ["--run", "k3s", "--on-event", program, ...command]);
  await guard.waitForLine(/event started: .*: it was killed before its end/);
});

/** Runs a command whose stdout is a non-blocking pipe, which is read only once it is full. */
const SLOW_READER = `
import fcntl, os, select, subprocess, sys
r, w = os.pipe()
fcntl.fcntl(w, fcntl.F_SETFL, fcntl.fcntl(w, fcntl.F_GETFL) | os.O_NONBLOCK)
child = subprocess.Popen(sys.argv[1:], stdout=w)
while child.poll() is None and select.select([], [w], [], 0)[1]: pass
os.close(w)
while True:
  data = os.read(r, 4096)
  if not data: break
  sys.stdout.buffer.write(data)
sys.exit(child.wait())
`;

test("stdout is a pipe that does not block, and its reader is slow: the document is whole", async ({ home }) => {
  for (let n = 0; n < 100; n++) home.instance(`vm${n}`);
  const guard = [Deno.execPath(), "run", "-A", ...denoFlags(), `${project}/lima_guard.ts`];
  const { status, stdout, json } = await runGuard(home, ["--status", "--json"], {
    program: ["/usr/bin/python3", "-c", SLOW_READER, ...guard],
  });
  assert.equal(status, 0);
  assert.ok(stdout.length > 65_536, `${stdout.length}`);
  assert.equal(json().instances.length, 101);
});
