/**
 * A failure gives no permission, and evidence stays: `main` itself over real files in worlds that are put together here,
 * with real sockets, real locks and processes that really hold a disk. Each call of the host fails in turn; runs follow
 * each other in any order and are cut off anywhere.
 */

import assert from "node:assert/strict";
import fc from "fast-check";
import { assertAsked } from "./commands/reasons.ts";
import { type Host, main, realHost } from "../lima_guard.ts";
import type { Failure } from "./facts.ts";
import { type Home, IMPOSSIBLE_PID, type Instance, killChild, tempLimaHome } from "./helpers/mod.ts";
import { LOCK, tree } from "./helpers/pre.ts";

const NO_LSOF = ["/usr/sbin/lsof", "/usr/bin/lsof"].every((path) => {
  try {
    return !Deno.statSync(path).isFile;
  } catch {
    return true;
  }
});

/** What is in a world, apart from k3s itself. */
interface World {
  readonly haPid?: "dead" | "another's" | "garbage" | undefined;
  readonly vzPid?: "dead" | "another's" | undefined;
  readonly driverPid?: boolean | undefined;
  readonly marker?: boolean | undefined;
  readonly usernetPid?: boolean | undefined;
  readonly diskLock?: "own" | "gone" | undefined;
  /** A VM of the Mac's own kind has its disk open, and nothing else shows it. */
  readonly ownDisk?: true;
  /** What must not be argued away. */
  readonly evidence: readonly Evidence[];
}

type Evidence = "ha.sock" | "qmp.sock" | "x.drv.sock" | "usernet" | "holder" | "lock";

interface Built extends AsyncDisposable {
  readonly home: Home;
  readonly k3s: Instance;
}

async function build(world: World): Promise<Built> {
  const home = await tempLimaHome();
  const k3s = home.instance("k3s", { yaml: world.diskLock ? "additionalDisks:\n- data\n" : "" });
  const open: { close(): void }[] = [];
  const children: Deno.ChildProcess[] = [];
  const hold = async (image: string) => {
    const args = ["-c", 'exec 3>>"$1"; echo; exec sleep 1000', "sh", image];
    const child = new Deno.Command("/bin/sh", { args, env: home.mark, stdin: "null", stdout: "piped" }).spawn();
    children.push(child);
    await child.stdout.getReader().read();
  };
  const pids = { dead: IMPOSSIBLE_PID, "another's": Deno.ppid, garbage: "12x\n" };
  if (world.haPid) k3s.pidFile("ha.pid", pids[world.haPid]);
  if (world.vzPid) k3s.pidFile("vz.pid", pids[world.vzPid]);
  if (world.driverPid) k3s.pidFile("x.drv.pid", String(IMPOSSIBLE_PID));
  if (world.marker) k3s.write("boot-session.tmp", "11111111-2222-3333-4444-555555555555\n");
  const listen = (path: string) => void open.push(Deno.listen({ transport: "unix", path }));
  for (const socket of ["ha.sock", "qmp.sock", "x.drv.sock"] as const) {
    if (world.evidence.includes(socket)) listen(k3s.path(socket));
  }
  if (world.usernetPid || world.evidence.includes("usernet")) {
    const network = home.network("user-v2", { pid: IMPOSSIBLE_PID });
    if (world.evidence.includes("usernet")) listen(`${network.dir}/user-v2_ep.sock`);
  }
  const targets = { own: k3s.dir, gone: `${home.lima}/gone` };
  const disk = world.diskLock && home.disk("data", { inUseBy: targets[world.diskLock] });
  if (disk && world.evidence.includes("holder")) await hold(`${disk.dir}/datadisk`);
  if (world.ownDisk) {
    k3s.write("vz-identifier", "");
    await hold(k3s.path("disk"));
  }
  if (world.evidence.includes("lock")) {
    const file = Deno.openSync(k3s.path(LOCK), { write: true, create: true });
    assert.ok(file.tryLockSync(true));
    open.push(file);
  }
  return {
    home,
    k3s,
    async [Symbol.asyncDispose]() {
      for (const each of open) each.close();
      for (const child of children) {
        killChild(child);
        await child.status;
      }
      await home[Symbol.asyncDispose]();
    },
  };
}

type CommandResult = NonNullable<Awaited<ReturnType<Host["run"]>>["ok"]>;
/** A call of the host that may fail, by its name and its place among all of them. */
type Fails = (call: string, n: number) => Failure | { readonly ended: CommandResult } | undefined;

interface Ran {
  readonly status: number;
  readonly state: string;
  readonly steps: readonly string[];
  readonly blockers: readonly { readonly because: string; readonly hint?: string }[];
  readonly calls: readonly string[];
}

const CALLS = [
  ...["stat", "list", "read", "realPath", "remove", "rename", "append", "openLock", "connect", "run"],
] as const;

/** The host that `main` is given. */
interface Given {
  readonly fails?: Fails;
  readonly os?: Host["os"];
}

/** `main`, with a host whose calls fail as is said; the pauses of a patient look are over at once. */
async function run({ home }: Built, args: readonly string[], given: Given = {}): Promise<Ran> {
  const real = realHost();
  const { fails = () => undefined, os = real.os } = given;
  const calls: string[] = [];
  let [stdout, jumpedMs, isKilled] = ["", 0, false];
  const host: Host = {
    ...real,
    os,
    clockMs: () => real.clockMs() + jumpedMs,
    pause: (ms) => {
      if (ms < 900 || ms > 2_500) return real.pause(ms);
      jumpedMs += 10_000;
      return real.pause(0);
    },
    openLock: (path, create) => {
      const opened = real.openLock(path, create);
      if (opened.ok) opened.ok.lockWithin = () => Promise.resolve(false);
      return opened;
    },
    onSignal: () => {},
    signal: (pid) => assert.fail(`PID ${pid} is about to be signalled`),
    stdout: (text) => void (stdout += text),
    stderr: () => {},
  };
  const mutable = host as unknown as Record<string, (...args: unknown[]) => unknown>;
  for (const name of CALLS) {
    const effect = mutable[name]!;
    mutable[name] = (...given) => {
      const what = typeof given[0] === "string" ? given[0] : JSON.stringify(given[0]);
      const call = `${name} ${what}`;
      const failure = fails(call, calls.push(call) - 1);
      const isSlow = name === "run" || name === "connect";
      if (!failure) return effect(...given);
      isKilled ||= "why" in failure && failure.why === "killed";
      const answer = "ended" in failure ? { ok: failure.ended } : failure;
      return isSlow ? Promise.resolve(answer) : answer;
    };
  }
  const status = await main([...args, "k3s", "--json", "--timeout", "4", "--lima-home", home.lima], host);
  const [report] = JSON.parse(stdout).instances;
  const { state, blockers } = report;
  // What a killed run would say is made up here.
  for (const reason of isKilled ? [] : blockers) assertAsked(reason);
  return { status, state, steps: report.steps.map((s: { what: string }) => s.what), blockers, calls };
}

/** The files of the test's home, except what lima-guard itself writes. */
function files({ home }: Built): string[] {
  return Object.keys(tree(home.lima)).filter((path) => !/\/lima-guard\.[^/]*$/.test(path)).sort();
}

const NONE = { sanitizeOps: false, sanitizeResources: false };

// ── a failure gives no permission ──

const WORLDS: Record<string, World> = {
  "a dead run": { haPid: "dead", vzPid: "another's", driverPid: true, marker: true, evidence: [] },
  "a dead run with a disk and a network": { haPid: "dead", usernetPid: true, diskLock: "own", evidence: [] },
  "a lock of an instance that is gone": { diskLock: "gone", evidence: [] },
  "a disk in use": { haPid: "dead", diskLock: "own", evidence: ["holder"] },
  "a disk in use, its instance is gone": { haPid: "dead", diskLock: "gone", evidence: ["holder"] },
  "ha.sock answers": { haPid: "dead", vzPid: "another's", evidence: ["ha.sock"] },
  "a driver's socket answers": { haPid: "garbage", driverPid: true, evidence: ["x.drv.sock"] },
  "usernet answers": { haPid: "dead", evidence: ["usernet"] },
  "the lock is held": { haPid: "dead", evidence: ["lock"] },
};

const FAILURES: readonly NonNullable<ReturnType<Fails>>[] = [
  { trouble: "other", why: "Input/output error (os error 5)" },
  { trouble: "denied", why: "Operation not permitted (os error 1)" },
];
const NO_ANSWERS: readonly NonNullable<ReturnType<Fails>>[] = [
  { trouble: "limit", why: "no answer within 5 s" },
  { ended: { code: 0, signal: undefined, stdout: "", stderr: "" } },
  { ended: { code: 1, signal: undefined, stdout: "", stderr: "error\n" } },
  { ended: { code: 0, signal: "SIGKILL", stdout: "", stderr: "" } },
];

for (const [title, world] of Object.entries(WORLDS)) {
  for (const args of [["--pre", "--dry-run"], ["--stop", "--dry-run"]]) {
    Deno.test({
      name: `${args[0]}, ${title}: whatever call fails, no step is added and no status gets better`,
      ignore: NO_LSOF && world.diskLock !== undefined,
      ...NONE,
      async fn() {
        await using built = await build(world);
        const whole = await run(built, args);
        const wrong: string[] = [];
        for (let n = 0; n < whole.calls.length; n++) {
          // The first of each: those after it are the same look once more.
          if (whole.calls.indexOf(whole.calls[n]!) < n) continue;
          for (const failure of whole.calls[n]!.startsWith("run ") ? NO_ANSWERS : FAILURES) {
            // What may not be opened leads to the lock of the directory.
            if (whole.calls[n]!.startsWith("openLock ") && "trouble" in failure && failure.trouble === "denied") {
              continue;
            }
            const failed = await run(built, args, { fails: (call) => call === whole.calls[n] ? failure : undefined });
            const added = failed.steps.filter((step) => !whole.steps.includes(step));
            const isBetter = whole.status !== 0 && failed.status === 0;
            const fault = JSON.stringify(failure).slice(0, 60);
            if (added.length > 0) wrong.push(`${whole.calls[n]}: ${fault}: adds ${added}`);
            if (isBetter) wrong.push(`${whole.calls[n]}: ${fault}: ${whole.status} becomes 0, ${failed.state}`);
          }
        }
        assert.deepEqual(wrong, []);
      },
    });
  }
}

// ── evidence stays ──

const anyWorld: fc.Arbitrary<World> = fc.record({
  haPid: fc.constantFrom("dead", "another's", "garbage", undefined),
  vzPid: fc.constantFrom("dead", "another's", undefined),
  driverPid: fc.boolean(),
  marker: fc.boolean(),
  usernetPid: fc.boolean(),
  diskLock: fc.constantFrom<World["diskLock"][]>(...NO_LSOF ? [undefined] : ["own", "gone", undefined] as const),
  evidence: fc.uniqueArray(
    fc.constantFrom<Evidence>("ha.sock", "qmp.sock", "x.drv.sock", "usernet", "holder", "lock"),
    { minLength: 1, maxLength: 2 },
  ),
}).filter((w) => {
  // lsof is asked where something is of this boot.
  const isAsked = w.diskLock === "gone" || w.diskLock === "own" && (w.haPid ?? w.vzPid) !== undefined;
  return isAsked || !w.evidence.includes("holder");
});

const anyRuns = fc.array(
  fc.record({
    args: fc.constantFrom(["--pre"], ["--pre", "--dry-run"], ["--stop"], ["--stop", "--dry-run"]),
    /** From this call on nothing more comes of it, as where it was killed. */
    killedAt: fc.option(fc.nat(150), { nil: undefined, freq: 2 }),
  }),
  { minLength: 2, maxLength: 4 },
);

Deno.test({
  name: "in no order of runs, cut off anywhere, is evidence argued away",
  ...NONE,
  async fn() {
    await fc.assert(
      fc.asyncProperty(anyWorld, anyRuns, async (world, runs) => {
        await using built = await build(world);
        const before = files(built);
        const isHeld = world.diskLock !== undefined && world.evidence.includes("holder");
        const isOwn = isHeld || world.evidence.some((e) => e !== "usernet" && e !== "holder");
        for (const { args, killedAt } of runs) {
          const killed = { trouble: "other", why: "killed" } as const;
          const fails: Fails = (_, n) => killedAt !== undefined && n >= killedAt ? killed : undefined;
          const ran = await run(built, args, { fails });
          const said = `${args}, killed at ${killedAt}: ${ran.state}`;
          if (isOwn || args[0] === "--pre") assert.notEqual(ran.status, 0, said);
          const gone = before.filter((path) => !files(built).includes(path));
          assert.deepEqual(isOwn ? gone : gone.filter((path) => path.startsWith("_networks")), [], said);
        }
      }),
      { numRuns: 60, interruptAfterTimeLimit: 30_000, markInterruptAsFailure: false },
    );
  },
});

const isBootQuestion = (call: string) => call.includes("/proc/sys/kernel/random/boot_id") || call.includes("kern.boot");

/** A run of `--pre` in which the question for the boot fails `times` times in this way; the journal's last boot. */
async function bootAsked(trouble: "other" | "limit", times: number) {
  await using built = await build({ haPid: "dead", marker: true, evidence: [] });
  let failed = 0;
  const fails: Fails = (call) => {
    if (!isBootQuestion(call)) return undefined;
    // The file is read first, where it can be; only the answer of the program counts as an answer.
    if (call.startsWith("read ")) return { trouble: "denied", why: "not permitted" };
    return failed++ < times ? { trouble, why: "it failed" } : undefined;
  };
  const ran = await run(built, ["--pre"], { fails });
  const lines = (built.k3s.read("lima-guard.jsonl") ?? "").trim().split("\n").map((line) => JSON.parse(line));
  const asked = ran.calls.filter((call) => isBootQuestion(call) && call.startsWith("run ")).length;
  return { boot: lines.at(-1).boot, asked };
}

Deno.test("a question for the boot that fails once is asked again: its failure is not kept", async () => {
  const { boot, asked } = await bootAsked("other", 1);
  assert.match(boot, /^[0-9A-Fa-f-]{36}$/);
  assert.ok(asked >= 2, `asked ${asked} times`);
});

Deno.test("a question for the boot that takes all its time is not asked again for a minute", async () => {
  const { boot, asked } = await bootAsked("limit", 100);
  assert.deepEqual([boot, asked], ["", 1]);
});

// ── what only another machine has ──

Deno.test({
  name: "on a Mac, a VM that shows itself only by its open disk: blocked as often as it is run, and nothing goes",
  ignore: NO_LSOF,
  ...NONE,
  async fn() {
    await using built = await build({ haPid: "dead", vzPid: "dead", ownDisk: true, evidence: [] });
    const before = files(built);
    for (const args of [["--pre", "--dry-run"], ["--pre"], ["--pre"]]) {
      const ran = await run(built, args, { os: "darwin" });
      assert.deepEqual([ran.status, ran.state, files(built)], [75, "blocked", before], args.join(" "));
    }
  },
});

Deno.test({
  name: "a lima.yaml that may not be read: on a Mac the settings are named, elsewhere they are not",
  ...NONE,
  async fn() {
    await using built = await build({ evidence: [] });
    const fails: Fails = (call) =>
      call === `read ${built.k3s.path("lima.yaml")}`
        ? { trouble: "denied", why: "Operation not permitted (os error 1)" }
        : undefined;
    for (const os of ["darwin", "linux"] as const) {
      const { status, state, blockers } = await run(built, ["--pre", "--dry-run"], { fails, os });
      const isNamed = /; where the mode permits it: System Settings, .*Full Disk Access$/.test(blockers[0]?.hint ?? "");
      assert.deepEqual([status, state, isNamed], [77, "blocked", os === "darwin"]);
    }
  },
});

/** A dry run where these places have no ps. */
async function withoutPs(...places: string[]) {
  await using built = await build({ vzPid: "another's", evidence: [] });
  const isGone = (call: string) => places.some((path) => call === `stat ${path}`);
  return await run(built, ["--pre", "--dry-run"], {
    fails: (call) => isGone(call) ? { trouble: "absent", why: "No such file or directory" } : undefined,
  });
}

Deno.test("no ps in /bin: the one of /usr/bin is asked", NONE, async () => {
  const { state, calls } = await withoutPs("/bin/ps");
  assert.equal(state, "stale");
  assert.ok(calls.some((call) => call.startsWith("run ") && call.includes('"/usr/bin/ps"')), calls.join("\n"));
});

Deno.test("no ps anywhere: unknown, with the places that were looked at", NONE, async () => {
  const { status, steps, blockers } = await withoutPs("/bin/ps", "/usr/bin/ps", "/run/current-system/sw/bin/ps");
  assert.deepEqual([status, steps], [75, []]);
  assert.match(blockers.map((b) => b.because).join("\n"), /there is no ps: looked for \/bin\/ps, \/usr\/bin\/ps, /);
});
