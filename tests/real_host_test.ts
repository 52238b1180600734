/** The real host under conditions that the other tests do not have: baked-in permissions, odd file systems, another name. */

import assert from "node:assert/strict";
import { BAKED_IN } from "../install.ts";
import { type Host, main, realHost } from "../lima_guard.ts";
import { run } from "./launchd/run.ts";
import { denoFlags, eventually, IMPOSSIBLE_PID, runGuard, tempLimaHome } from "./helpers/mod.ts";
import { project } from "./helpers/paths.ts";

const LINUX = Deno.build.os === "linux";

/** The options of the compiled binary, around the source. */
const baked = (script = `${project}/lima_guard.ts`) => [Deno.execPath(), "run", ...BAKED_IN, ...denoFlags(), script];

for (
  const [path, completed] of [
    ["", "/usr/bin:/bin:/usr/sbin:/sbin"],
    ["/opt/x/bin", "/opt/x/bin:/usr/bin:/bin:/usr/sbin:/sbin"],
    ["/sbin:/opt/x/bin:/bin", "/sbin:/opt/x/bin:/bin:/usr/bin:/usr/sbin"],
  ] as const
) {
  Deno.test(`what is started finds the programs of the system, last: PATH ${path}`, async () => {
    const command = { argv: ["sh", "-c", 'echo "$PATH"'], env: { PATH: path } } as const;
    const answer = await realHost().run(command, 10_000);
    assert.equal(answer.ok?.stdout.trim(), completed, JSON.stringify(answer));
    const lines: string[] = [];
    const started = realHost().start(command);
    started.ok?.onLine((line) => lines.push(line));
    assert.equal((await started.ok?.ended)?.code, 0, JSON.stringify(started));
    await eventually(() => assert.deepEqual(lines, [completed]));
  });
}

Deno.test("append: a file system that cannot sync takes the line; one that cannot write it does not", async () => {
  await using home = await tempLimaHome();
  // fsync(2) of a FIFO is refused with EINVAL, as F_FULLFSYNC is on SMB and NFS.
  const fifo = `${home.root}/journal`;
  assert.ok((await new Deno.Command("mkfifo", { args: [fifo] }).output()).success);
  using reader = await Deno.open(fifo, { read: true, write: true });
  await assert.rejects(() => reader.sync());
  assert.equal(realHost().append(fifo, "a line\n").trouble, undefined);
  const buffer = new Uint8Array(64);
  assert.equal(new TextDecoder().decode(buffer.subarray(0, await reader.read(buffer) ?? 0)), "a line\n");
});

Deno.test({
  name: "append: a full disk is a failure",
  ignore: !LINUX,
  fn() {
    const written = realHost().append("/dev/full", "a line\n");
    assert.match(written.trouble === undefined ? "" : written.why, /No space left/);
  },
});

Deno.test("with the permissions of the compiled binary the journal knows the boot", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  k3s.pidFile("vz.pid", IMPOSSIBLE_PID);
  const done = await runGuard(home, ["--pre", "k3s"], { program: baked() });
  assert.equal(done.status, 0, done.stderr);
  const [line] = (k3s.read("lima-guard.jsonl") ?? "").split("\n");
  assert.match(JSON.parse(line ?? "").boot, /^[0-9A-Fa-f-]{36}$/);
});

Deno.test("with the permissions of the compiled binary a whole run: started, proven, stopped", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using guard = run(k3s, { program: baked() });
  await guard.waitForLine(/: Running after /);
  const stop = await runGuard(home, ["--stop", "k3s", "--json"], { program: baked() });
  assert.deepEqual([stop.status, stop.json().instances[0].state], [0, "stopped"], stop.stdout + stop.stderr);
  assert.equal((await guard.result()).status, 0);
  assert.ok(k3s.read("vz.pid") === undefined);
});

Deno.test({
  name:
    "with the permissions of the compiled binary a LIMA_HOME below /dev, where Deno opens nothing: 77 with the reason",
  ignore: !LINUX,
  async fn() {
    await using home = await tempLimaHome();
    const dir = Deno.makeTempDirSync({ dir: "/dev/shm" });
    try {
      Deno.mkdirSync(`${dir}/k3s`);
      Deno.writeTextFileSync(`${dir}/k3s/lima.yaml`, "images: []\n");
      for (const args of [["--pre", "k3s"], ["--stop", "k3s"]]) {
        const { status, stdout } = await runGuard(home, [...args, "--lima-home", dir], { program: baked() });
        assert.equal(status, 77, stdout);
        assert.match(stdout, /blocked: .*\/k3s: Requires all access to /);
      }
    } finally {
      Deno.removeSync(dir, { recursive: true });
    }
  },
});

Deno.test("a copy with a name of its own: its --run is proven by its lock, record, start time and arguments", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  const copy = `${home.root}/vmkeeper.ts`;
  Deno.copyFileSync(`${project}/lima_guard.ts`, copy);
  await using guard = run(k3s, { program: baked(copy) });
  await guard.waitForLine(/: Running after /);
  const seen = (await runGuard(home, ["--pre", "k3s"])).stdout;
  assert.match(seen, /^k3s: running: lima-guard --run \d+ supervises it/);
  const stop = await runGuard(home, ["--stop", "k3s", "--json"]);
  assert.deepEqual([stop.status, stop.json().instances[0].state], [0, "stopped"], stop.stdout + stop.stderr);
  assert.equal((await guard.result()).status, 0);
});

/** What is asked for, where its output goes, and the exit status. `full`: a line of stderr says that it was lost. */
const OUTPUTS: readonly [args: string[], to: "full" | "a reader that leaves", status: number][] = [
  [["--status", "--json"], "full", 1],
  [["--status"], "full", 1],
  [["--pre", "--json", "k3s"], "full", 1],
  [["--stop", "--json", "--all"], "full", 1],
  // The status alone is an answer, and a full disk must not keep the command after `&&` from starting.
  [["--pre", "k3s"], "full", 0],
  [["--stop", "k3s"], "full", 0],
  [["--version"], "full", 1],
  [["--json", "--bogus"], "full", 64],
  [["--check", "--json", "k3s"], "full", 1],
  [["--status", "--json"], "a reader that leaves", 0],
  [["--help"], "a reader that leaves", 0],
];
Deno.test({
  name: "a result that cannot be written is a failure, and said on stderr; a reader that leaves early is none",
  ignore: !LINUX,
  async fn() {
    await using home = await tempLimaHome();
    home.instance("k3s");
    const guard = [Deno.execPath(), "run", "-A", ...denoFlags(), `${project}/lima_guard.ts`];
    for (const [args, to, expected] of OUTPUTS) {
      // The reader has left before the first byte: `exec` ends it, and bash tells of lima-guard only.
      const how = to === "full" ? '"$@" >/dev/full' : '"$@" > >(exec true); exit $?';
      const { status, stderr } = await runGuard(home, args, { program: ["bash", "-c", how, "sh", ...guard] });
      assert.equal(status, expected, `${args.join(" ")}: ${stderr}`);
      const lost = /^lima-guard: Cannot write the result: No space left on device/m;
      assert.equal(lost.test(stderr), to === "full", `${args.join(" ")}: ${stderr}`);
    }
  },
});

Deno.test("of a journal that is full --run reads the end: a full one would take 10 MiB of memory", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  const line = { time: "2026-11-27T20:00:00.000Z", boot: "b", dir: k3s.dir, role: "run", event: "start", pid: 7 };
  k3s.write("lima-guard.jsonl", `${JSON.stringify(line)}\n`.repeat(8_000));
  const real = realHost();
  const read: number[] = [];
  let skippedMs = 0;
  const host: Host = {
    ...real,
    clockMs: () => real.clockMs() + skippedMs,
    pause: (ms) => (skippedMs += ms, real.pause(1)),
    read: (path, most) => (path.endsWith(".jsonl") && read.push(most), real.read(path, most)),
    onSignal: () => {},
    stdout: () => undefined,
    stderr: () => {},
  };
  await main(["--run", "k3s", "--lima-home", home.lima, "--on-event", "/bin/true", "--", "/bin/true"], host);
  assert.ok(read.length > 2 && Math.max(...read) <= 65_536, `${read}`);
});

Deno.test("a lock that has no record, a directory or a file that is gone, is read as empty", async () => {
  await using home = await tempLimaHome();
  const path = `${home.root}/lock`;
  Deno.writeTextFileSync(path, "");
  const locks = [realHost().openLock(home.root, false).ok!, realHost().openLock(path, false).ok!];
  Deno.removeSync(path);
  assert.deepEqual(locks.map((lock) => lock.read()), ["", ""]);
  for (const lock of locks) lock.close();
});

Deno.test("the record in a lock is whole whenever it is read: else --stop would not know which --run to ask", async () => {
  await using home = await tempLimaHome();
  const path = `${home.root}/lock`;
  const [long, short] = ["supervising and more", "working"].map((phase) => JSON.stringify({ phase }) + "\n");
  const writer = `import { realHost } from "file://${project}/lima_guard.ts";
    const lock = realHost().openLock(${JSON.stringify(path)}, true).ok;
    lock.write(${JSON.stringify(long)});
    postMessage("begun");
    for (let n = 0; n < 20_000; n++) lock.write(n % 2 ? ${JSON.stringify(long)} : ${JSON.stringify(short)});
    lock.close();
    postMessage("ended");`;
  const worker = new Worker(`data:text/javascript,${encodeURIComponent(writer)}`, { type: "module" });
  let state = "";
  worker.onmessage = ({ data }) => state = data;
  await eventually(() => assert.notEqual(state, ""), { withinMs: 30_000 });
  const lock = realHost().openLock(path, false).ok!;
  const seen = new Set<string>();
  while (state !== "ended") {
    for (let n = 0; n < 200; n++) seen.add(lock.read().split("\n", 1)[0]!);
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  lock.close();
  worker.terminate();
  assert.deepEqual([...seen].sort(), [long, short].map((text) => text!.trim()).sort());
});
