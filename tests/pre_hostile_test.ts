/**
 * `--pre` on bad input: PID files that are none, LIMA_HOMEs in odd places, names, programs that fail, hang or lie,
 * another lima-guard, other users. Nothing of it may hurt another program, hang lima-guard, or permit a step that was
 * not understood.
 */

import assert from "node:assert/strict";
import { guardWith, meanwhile, type Twist } from "./helpers/guard_with.ts";
import {
  cutOff,
  eventually,
  IMPOSSIBLE_PID,
  type Instance,
  NO_ORDINARY_USER,
  ordinaryUser,
  readOnlyDir,
  runGuard,
  spawnGuard,
  startAgent,
  startBystander,
  startQemuOrphan,
  tempLimaHome,
  tinyMount,
  whyNoMount,
  whyNoReadOnlyDir,
} from "./helpers/mod.ts";
import {
  allButLocks,
  dryRun,
  everything,
  JOURNAL,
  leavesAlone,
  LOCK,
  PID_FILES,
  pre,
  refuses,
  remark,
  repairs,
  type Report,
  SIRITTSD,
  starts,
  strew,
  test,
  tree,
  USERNET,
} from "./helpers/pre.ts";
import { events, running, stopRun } from "./launchd/run.ts";

const NO_USER = Deno.uid() === 0 && !ordinaryUser() ? NO_ORDINARY_USER : false;

// --- what stands in a PID file ----------------------------------------------------------------------------------------------

/** Texts that are no PID. `N` stands for the bystander's, which most of them look like, and must not be taken for. */
const GARBAGE: Record<string, string | ((pid: number) => string)> = {
  "empty": "",
  "blank": " \t\r\n\n",
  "a number and a letter": (n) => `${n}x`,
  "a letter and a number": (n) => `x${n}`,
  "0": "0\n",
  "00": "00\n",
  "1": "1\n",
  "-1": "-1\n",
  "a process group": (n) => `-${n}\n`,
  "a sign": (n) => `+${n}\n`,
  "a fraction": (n) => `${n}.0\n`,
  "an exponent": (n) => `${n}e0\n`,
  "hexadecimal": (n) => `0x${n.toString(16)}\n`,
  "two numbers": (n) => `${n} ${n}\n`,
  "two lines": (n) => `${n}\n${n}\n`,
  "digits that are not ASCII": "١٢٣٤\n",
  "larger than any PID": "4194305\n",
  "a number that is the bystander's in 32 bits": (n) => `${2 ** 32 + n}\n`,
  "a number that is the bystander's in 64 bits": (n) => `${2n ** 64n + BigInt(n)}\n`,
  "a thousand digits": "7".repeat(1000),
  "not a number": "NaN\n",
  "a NUL behind it": (n) => `${n}\0`,
  "NULs, as a file system may leave after a power cut": "\0".repeat(5),
  "another encoding": (n) => [...`${n}`].map((c) => `${c}\0`).join(""),
  "far behind blanks": (n) => `${" ".repeat(100)}${n}\n`,
  "1 MB of digits": "7".repeat(1_000_000),
  "1 MB that is no text": "\xff\x00\x1b[2J".repeat(170_000),
};

for (const [what, text] of Object.entries(GARBAGE)) {
  test(`a PID file is no PID: ${what}`, async ({ home, k3s, bystander }) => {
    const content = typeof text === "string" ? text : text(bystander.pid);
    for (const file of PID_FILES) k3s.pidFile(file, content);
    home.network("user-v2", { pid: content });
    await repairs(k3s, { removes: [...PID_FILES, `../${USERNET}`], because: [/^it is not a PID/] });
  });
}

/** Ways to write a number that Lima reads too. */
const SPELLINGS: Record<string, (pid: number) => string> = {
  "CRLF": (n) => `${n}\r\n`,
  "blanks around it": (n) => ` \t${n} \n\n`,
  "no line end": (n) => `${n}`,
  "leading zeros": (n) => `000${n}\n`,
};

for (const [what, spelt] of Object.entries(SPELLINGS)) {
  test(`a PID file is a PID: ${what}`, async ({ k3s, bystander }) => {
    k3s.pidFile("vz.pid", spelt(bystander.pid));
    await refuses(k3s, "vz driver is running but host agent is not");
    await repairs(k3s, { removes: ["vz.pid"], because: [SIRITTSD] });
    await using agent = await startAgent(k3s);
    k3s.pidFile("ha.pid", spelt(agent.pid));
    k3s.pidFile("vz.pid", spelt(agent.pid));
    await leavesAlone(k3s, { state: "running", status: 0 });
    assert.ok(agent.isAlive());
  });
}

// --- what stands in the place of a PID file ------------------------------------------------------------------------------------

for (const file of ["ha.pid", "x.drv.pid"]) {
  test(`${file} is a directory: unknown, and nothing of the instance is touched`, async ({ k3s, bystander }) => {
    Deno.mkdirSync(k3s.path(file));
    Deno.writeTextFileSync(k3s.path(`${file}/keep`), "");
    strew(k3s, bystander.pid);
    k3s.staleSocket("ha.sock");
    const blockers = [new RegExp(`${file}: it is a directory`)];
    await leavesAlone(k3s, { state: "unknown", status: 75, blockers });
  });
}

test("PID files are FIFOs, which make a reader wait forever", async ({ k3s }) => {
  for (const file of PID_FILES) fifo(k3s.path(file));
  await repairs(k3s, { removes: PID_FILES, because: [/^it is a FIFO/] }, { timeoutMs: 10_000 });
  await starts(k3s);
});

test("PID files are sockets", async ({ k3s }) => {
  for (const file of PID_FILES) k3s.staleSocket(file);
  await repairs(k3s, { removes: PID_FILES, because: [/^it is a socket/] });
  await starts(k3s);
});

for (
  const [what, target] of [
    ["to a file out of the directory", "../../outside"],
    ["to nothing", "/nonexistent/vz.pid"],
    ["to a directory", "../../home"],
    ["to each other", "ha.pid"],
    ["to a file that makes its readers wait", "../../fifo"],
  ] as const
) {
  test(`PID files are links ${what}: the links go, their targets stay`, async ({ home, k3s, bystander }) => {
    Deno.writeTextFileSync(`${home.root}/outside`, `${bystander.pid}\n`);
    fifo(`${home.root}/fifo`);
    for (const file of PID_FILES) Deno.symlinkSync(target, k3s.path(file));
    const before = tree(home.root);
    await repairs(k3s, { removes: PID_FILES, because: [/^it is a link/] }, { timeoutMs: 10_000 });
    const after = tree(home.root);
    for (const name of ["outside", "fifo", "home"]) assert.equal(after[name], before[name]);
  });
}

test("a PID file is a device", async ({ k3s }) => {
  const { success } = new Deno.Command("mknod", { args: [k3s.path("vz.pid"), "c", "1", "5"] }).outputSync();
  assert.ok(success);
  await repairs(k3s, { removes: ["vz.pid"], because: [/^it is a device/] }, { timeoutMs: 10_000 });
}, { ignore: Deno.uid() === 0 ? whyNoMount() : "needs root to make a device" });

test("a PID file is a link to the genuine one: the host agent is found all the same", async ({ k3s }) => {
  await using agent = await startAgent(k3s);
  Deno.renameSync(k3s.path("ha.pid"), k3s.path("real"));
  Deno.symlinkSync("real", k3s.path("ha.pid"));
  await leavesAlone(k3s, { state: "running", status: 0 });
  assert.ok(agent.isAlive());
});

test("what goes with ha.pid goes only if it is a socket", async ({ home, k3s, bystander }) => {
  Deno.writeTextFileSync(`${home.root}/outside`, "keep\n");
  for (
    const make of [
      () => Deno.writeTextFileSync(k3s.path("ha.sock"), "keep\n"),
      () => Deno.symlinkSync("../../outside", k3s.path("ha.sock")),
      () => Deno.mkdirSync(k3s.path("ha.sock")),
      () => fifo(k3s.path("ha.sock")),
    ]
  ) {
    make();
    const before = tree(home.root)["lima/k3s/ha.sock"];
    k3s.pidFile("ha.pid", bystander.pid);
    const { status } = await pre(k3s, { timeoutMs: 10_000 });
    assert.equal(status, 0);
    assert.equal(k3s.has("ha.pid"), false);
    assert.equal(tree(home.root)["lima/k3s/ha.sock"], before);
    k3s.remove("ha.sock");
  }
  assert.equal(Deno.readTextFileSync(`${home.root}/outside`), "keep\n");
});

test("everything else that is read may be a FIFO, a link to one, or a directory", async ({ home, k3s, bystander }) => {
  const others = ["boot-session.tmp", "ssh.config", "ha.stdout.log", JOURNAL, "../_config/networks.yaml"];
  const network = home.network("user-v2", { pid: bystander.pid });
  fifo(`${home.root}/fifo`);
  for (
    const make of [
      (path: string) => fifo(path),
      (path: string) => Deno.symlinkSync(`${home.root}/fifo`, path),
      (path: string) => Deno.mkdirSync(path),
    ]
  ) {
    for (const file of others) make(k3s.path(file));
    make(`${network.dir}/user-v2_ep.sock`);
    // A link is what belongs there.
    const lock = `${home.disk("data").dir}/in_use_by`;
    make(lock);
    if (Deno.lstatSync(lock).isSymlink) Deno.removeSync(lock);
    const before = allButLocks(home);
    k3s.pidFile("vz.pid", bystander.pid);
    Deno.writeTextFileSync(network.pidFile, `${bystander.pid}\n`);
    const { status, report, stdout } = await pre(k3s, { timeoutMs: 10_000 });
    // Lima can neither read nor replace a directory in the place of ssh.config: its start would fail.
    const isDirectory = Deno.lstatSync(k3s.path("ssh.config")).isDirectory;
    // Nor does it start with a disk whose lock is no link (seen with 1.2.3, 2.2.0 and 2.3).
    const blockers = [...isDirectory ? [k3s.path("ssh.config")] : [], ...exists(lock) ? [lock] : []];
    assert.deepEqual(report.blockers.map(({ what }) => what), blockers, stdout);
    assert.equal(status, blockers.length === 0 ? 0 : 75, stdout);
    assert.equal(k3s.has("vz.pid"), false);
    for (const file of others) {
      const name = `lima/k3s/${file}`.replace("k3s/../", "");
      assert.equal(allButLocks(home)[name], before[name]);
      k3s.remove(file);
    }
    Deno.removeSync(`${network.dir}/user-v2_ep.sock`, { recursive: true });
    if (exists(lock)) Deno.removeSync(lock, { recursive: true });
  }
}, { yaml: "additionalDisks:\n- data\n" });

test("the lock is a FIFO, a link out of the directory, or a directory: nothing is done, and no waiting", async ({ home, k3s, bystander }) => {
  Deno.writeTextFileSync(`${home.root}/outside`, "keep\n");
  for (
    const make of [
      (path: string) => fifo(path),
      (path: string) => Deno.symlinkSync("../../outside", path),
      (path: string) => Deno.symlinkSync("../../not-yet-there", path),
      (path: string) => Deno.mkdirSync(path),
    ]
  ) {
    make(k3s.path(LOCK));
    k3s.pidFile("vz.pid", bystander.pid);
    const { status, report } = await pre(k3s, { timeoutMs: 10_000 });
    assert.deepEqual([status, report.state, report.steps], [75, "unknown", []]);
    assert.match(remark(report.blockers[0]!), /lima-guard\.lock: it cannot be locked: .*ls -l/);
    assert.equal(k3s.pid("vz.pid"), bystander.pid);
    k3s.remove(LOCK);
  }
  assert.equal(Deno.readTextFileSync(`${home.root}/outside`), "keep\n");
  assert.equal(exists(`${home.root}/not-yet-there`), false);
});

test("lima.yaml is a FIFO: no instance, and no waiting", async ({ home, k3s }) => {
  k3s.remove("lima.yaml");
  fifo(k3s.path("lima.yaml"));
  const { status } = await runGuard(home, ["--pre", "k3s"], { timeoutMs: 10_000 });
  assert.equal(status, 66);
});

test("a PID file cannot be read: unknown, and nothing is touched", async ({ home, k3s, bystander }) => {
  const user = ordinaryUser();
  strew(k3s, bystander.pid);
  if (user) home.giveTo(user);
  Deno.chmodSync(k3s.path("ha.pid"), 0o000);
  const blockers = [/ha\.pid: it cannot be read/];
  const { report } = await leavesAlone(k3s, { state: "unknown", status: 75, blockers }, { user });
  assert.match(report.blockers[0]!.hint ?? "", /^ls -ld .*; if this VM does not run: /);
}, { ignore: NO_USER });

test(
  "PID files of root in a user's directory: one that can be read goes, and one that cannot does not",
  async ({ home, k3s }) => {
    const user = ordinaryUser()!;
    home.giveTo(user);
    // A process of the user's own, or the owner of the process alone would tell.
    await using other = await startBystander(home, { uid: user.uid, gid: user.gid });
    k3s.pidFile("vz.pid", other.pid);
    Deno.chownSync(k3s.path("vz.pid"), 0, 0);
    await repairs(k3s, { removes: ["vz.pid"], because: [SIRITTSD] }, { user });
    k3s.pidFile("vz.pid", other.pid);
    Deno.chownSync(k3s.path("vz.pid"), 0, 0);
    Deno.chmodSync(k3s.path("vz.pid"), 0o600);
    await leavesAlone(k3s, { state: "unknown", status: 75, blockers: [/vz\.pid: it cannot be read/] }, { user });
    other.assertAlive();
  },
  { ignore: ordinaryUser() ? false : NO_ORDINARY_USER },
);

// --- PID files that change while they are read ----------------------------------------------------------------------------------

test("a PID file vanishes between finding it and reading it", async ({ home, k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  const stay = { at: "read .*/vz\\.pid", file: `${home.root}/stay` };
  const running = pre(k3s, guardWith({ stays: [stay] }));
  await meanwhile(stay, () => k3s.remove("vz.pid"));
  const { status, report } = await running;
  assert.deepEqual([status, report.state, report.steps], [0, "clear", []]);
});

test("a PID file gets the number of a genuine host agent between looking at it and reading it", async ({ home, k3s, bystander }) => {
  await using agent = await startAgent(k3s);
  k3s.pidFile("vz.pid", bystander.pid);
  const stay = { at: "read .*/vz\\.pid", file: `${home.root}/stay` };
  const running = pre(k3s, guardWith({ stays: [stay] }));
  await meanwhile(stay, () => void k3s.pidFile("vz.pid", agent.pid));
  const { status, report } = await running;
  assert.deepEqual([status, report.state, report.steps], [0, "running", []]);
  assert.equal(k3s.pid("vz.pid"), agent.pid);
});

for (const [what, text] of [["empty", ""], ["cut short", "7"]] as const) {
  test(`ha.pid is young and ${what}: Lima is writing it, so it is read again`, async ({ home, k3s }) => {
    await using agent = await startAgent(k3s);
    k3s.pidFile("ha.pid", text, { ageSeconds: 0 });
    const stay = { at: "before pause [1-5]\\d\\d\\d", file: `${home.root}/stay` };
    const running = pre(k3s, guardWith({ stays: [stay], hurry: true }));
    await meanwhile(stay, () => void k3s.pidFile("ha.pid", agent.pid, { ageSeconds: 0 }));
    const { status, report } = await running;
    assert.deepEqual([status, report.state, report.steps], [0, "running", []]);
    assert.ok(agent.isAlive());
  });
}

for (const file of ["ha.pid", "x.drv.pid"]) {
  test(`${file} is young and stays empty: it is read once more, and goes`, async ({ home, k3s }) => {
    k3s.pidFile(file, "", { ageSeconds: 0 });
    const log = `${home.root}/points`;
    const { status, report } = await pre(k3s, guardWith({ hurry: true, log }));
    assert.deepEqual([status, report.steps.length, k3s.has(file)], [0, 1, false]);
    assert.match(Deno.readTextFileSync(log), /before pause [1-5]\d\d\d/);
  });
}

test("a young PID file that is complete is not waited for, nor one with a date of the future", async ({ home, k3s, bystander }) => {
  const log = `${home.root}/points`;
  k3s.pidFile("ha.pid", bystander.pid, { ageSeconds: 0 });
  k3s.pidFile("vz.pid", "", { ageSeconds: -3600 });
  k3s.pidFile("x.drv.pid", `${bystander.pid}`, { ageSeconds: 0 }); // never has a line end
  const stay = { at: "before pause", file: `${home.root}/stay` };
  const { report } = await pre(k3s, guardWith({ log, stays: [stay] }));
  assert.equal(report.steps.length, 3);
  assert.equal(exists(`${stay.file}.here`), false, "it has paused");
});

test("PID 1 of a container is the host agent: it never gets a signal, and is not taken for gone", async ({ home, k3s }) => {
  k3s.pidFile("ha.pid", 1);
  const command = `limactl hostagent --pidfile ${k3s.dir}/ha.pid --socket ${k3s.dir}/ha.sock k3s`;
  const lie = { does: "lie", pattern: "^( *1 +0 +)\\d+( +\\S+ .* \\d\\d\\d\\d) .*$" } as const;
  const twist = guardWith({ programs: { ps: { ...lie, by: `$1${Deno.uid()}$2 ${command}` } } });
  await leavesAlone(k3s, { state: "unknown", status: 75, blockers: [/PID 1: it looks like a host agent/] }, twist);
  const { status, stdout } = await runGuard(home, ["--stop", "k3s"], twist);
  assert.deepEqual([status, k3s.pid("ha.pid")], [75, 1], stdout);
});

// --- where LIMA_HOME is -----------------------------------------------------------------------------------------------------------

test("LIMA_HOME is missing, or a file", async ({ home }) => {
  Deno.writeTextFileSync(`${home.root}/file`, "");
  for (const lima of ["missing", "file", "missing/deeper"]) {
    const before = everything(home);
    const result = await runGuard(home, ["--pre", "k3s", "--json"], { env: { LIMA_HOME: `${home.root}/${lima}` } });
    assert.equal(result.status, 66, result.stderr);
    assert.equal(result.json().instances[0].state, "missing");
    assert.deepEqual(everything(home), before);
  }
});

test("LIMA_HOME cannot be entered: not permitted, and no instance is missing", async ({ home, k3s, bystander }) => {
  const user = ordinaryUser();
  k3s.pidFile("vz.pid", bystander.pid);
  if (user) home.giveTo(user);
  Deno.chmodSync(home.lima, 0o000);
  const result = await runGuard(home, ["--pre", "k3s", "--json"], { user });
  Deno.chmodSync(home.lima, 0o755);
  assert.equal(result.status, 77, `${result.stdout}${result.stderr}`);
  assert.equal(k3s.pid("vz.pid"), bystander.pid);
}, { ignore: NO_USER });

for (
  const name of [
    'zo\u00eb\'s "lima" (1), $HOME & co',
    "zoe\u0308",
    "l,i=m a,path=",
    "[lima] (hostagent) *.+?",
    "李馬🦙",
  ]
) {
  test(`LIMA_HOME is called ${name}`, async ({ home, k3s, bystander }) => {
    k3s.staleSocket("ha.sock");
    const removes = strew(k3s, bystander.pid);
    await repairs(k3s, { removes: [...removes, "ha.sock"] });
    {
      // An environment in which ps could not print it, nor all of it.
      const env = { LC_ALL: "C", COLUMNS: "40", PS_FORMAT: "pid", PS_PERSONALITY: "bsd", LANG: "C" };
      await using agent = await startAgent(k3s);
      await leavesAlone(k3s, { state: "running", status: 0 }, { env });
      assert.ok(agent.isAlive());
      agent.signal("SIGKILL");
    }
    await using orphan = await startQemuOrphan(home.instance("other", { conf: { vmtype: "qemu" } }));
    const other = await runGuard(home, ["--pre", "--json", "other"]);
    assert.deepEqual([other.status, other.json().instances[0].state], [0, "orphan"], other.stdout);
    await orphan.waitForExit();
  }, { name });
}

test("LIMA_HOME has a line end in its name: a host agent is not taken for another program", async ({ home, k3s }) => {
  const command = ["limactl", "hostagent", "--pidfile", k3s.path("ha.pid"), "--socket", k3s.path("ha.sock"), "k3s"];
  await using agent = await startBystander(home, { command });
  k3s.pidFile("ha.pid", agent.pid);
  const { status, report } = await pre(k3s);
  assert.deepEqual([status, report.state, report.steps], [75, "unknown", []]);
  assert.equal(k3s.pid("ha.pid"), agent.pid);
  agent.assertAlive();
}, { name: "li\nma" });

test("LIMA_HOME is too long for a socket: said before Lima fails", async ({ k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  const done = await repairs(k3s, { removes: ["vz.pid"], state: "blocked", status: 75 });
  assert.match(remark(done.report.blockers[0]!), /ha\.sock: its path has \d+ bytes.*\(move LIMA_HOME/);
}, { name: "x".repeat(100) });

Deno.test({
  name: "the disk is full: files can still be removed, and a journal that cannot be written stops nothing",
  ignore: whyNoMount() !== undefined,
  async fn() {
    await using home = await tempLimaHome();
    using mount = tinyMount(home.lima);
    const k3s = home.instance("k3s");
    await using bystander = await startBystander(home);
    // They have no content, so that their removal does not make room.
    for (const file of ["ha.pid", "vz.pid"]) k3s.pidFile(file, "");
    mount.fill();
    const { status, report, stderr } = await pre(k3s);
    assert.equal(status, 0, stderr);
    assert.deepEqual([report.state, report.steps.map((step) => step.outcome)], ["stale", ["done", "done"]]);
    assert.match(stderr, /no journal: .*No space left on device/);
    assert.deepEqual([k3s.has("ha.pid"), k3s.has("vz.pid")], [false, false]);
    bystander.assertAlive();
  },
});

test("the disk is read-only: said, with nothing else", async ({ k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  using _ = readOnlyDir(k3s.dir);
  const blockers = [/vz\.pid: it is stale \(.*\) and cannot be removed: /];
  await leavesAlone(k3s, { state: "blocked", status: 77, blockers });
}, { ignore: whyNoReadOnlyDir() });

test("the disk is read-only, and nothing is stale: nothing to do", async ({ k3s }) => {
  using _ = readOnlyDir(k3s.dir);
  await leavesAlone(k3s, { state: "clear", status: 0 });
}, { ignore: whyNoReadOnlyDir() });

// --- names ------------------------------------------------------------------------------------------------------------------------

test("names that are none: usage, and nothing is touched", async ({ home, k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  Deno.symlinkSync(k3s.dir, `${home.lima}/_link`);
  const before = everything(home);
  const names = [
    "",
    ".",
    "..",
    "../lima/k3s",
    k3s.dir,
    "k3s/",
    "k3s/.",
    "_config",
    "_link",
    ".k3s",
    "-k3s",
    "k3s-",
    "k3s..x",
  ];
  for (const name of [...names, "k 3s", "k3s\n", "k3s\0", "k3s.yaml", "k3s.YML", "*", "zoë", "x".repeat(77)]) {
    if (name.includes("\0")) continue; // no argument can hold one
    const { status, stdout, stderr } = await runGuard(home, ["--pre", "k3s", name]);
    assert.deepEqual([status, stdout], [64, ""], `${JSON.stringify(name)}: ${stderr}`);
    assert.match(stderr, /^lima-guard: .*\n$/s);
  }
  assert.deepEqual(everything(home), before);
});

test("instances called 42, 007, 1e3, true and NaN", async ({ home, bystander }) => {
  for (const name of ["42", "007", "1e3", "true", "NaN"]) {
    const instance = home.instance(name);
    instance.pidFile("vz.pid", bystander.pid);
    await repairs(instance, { removes: ["vz.pid"] });
  }
});

test("k3s and k3s-2, both alive: each is only itself", async ({ home, k3s }) => {
  const second = home.instance("k3s-2");
  const longer = home.instance("k3s-2.old");
  await using one = await startAgent(k3s);
  await using two = await startAgent(second);
  await using three = await startAgent(longer);
  for (const instance of [k3s, second, longer]) await leavesAlone(instance, { state: "running", status: 0 });
  for (const agent of [one, two, three]) assert.ok(agent.isAlive());
});

test("the files of k3s name the host agents of k3s-2 and of another LIMA_HOME's k3s: not its own", async ({ home, k3s }) => {
  const second = home.instance("k3s-2");
  await using two = await startAgent(second);
  await using elsewhere = await tempLimaHome();
  const namesake = elsewhere.instance("k3s");
  await using three = await startAgent(namesake);
  k3s.pidFile("ha.pid", two.pid);
  k3s.pidFile("vz.pid", three.pid);
  k3s.staleSocket("ha.sock");
  await repairs(k3s, {
    removes: ["ha.pid", "ha.sock", "vz.pid"],
    because: [/not ours: it is the host agent of another/],
  });
  for (const [instance, agent] of [[second, two], [namesake, three]] as const) {
    assert.ok(agent.isAlive());
    assert.equal(instance.pid("ha.pid"), agent.pid);
    assert.deepEqual(instance.log().filter((line) => line.startsWith("Received")), []);
  }
});

/** Commands that name everything of Lima's, of processes that are not. */
const LOOK_ALIKES: Record<string, (dir: string) => string> = {
  "a reader of its log": (dir) => `/usr/bin/tail -f ${dir}/ha.stderr.log`,
  "limactl shell": () => "limactl shell k3s",
  "its ssh mux": (dir) => `ssh: ${dir}/ssh.sock [mux]`,
  "a QEMU of another program's": () => "qemu-system-x86_64 -name lima-k3s -display none",
  "a QEMU that only has its disk": (dir) => `qemu-system-x86_64 -drive file=${dir}/disk -name lima-k3s`,
  "a QEMU of k3s-2": (dir) => `qemu-system-x86_64 -name lima-k3s -pidfile ${dir}-2/qemu.pid`,
};

for (const [what, command] of Object.entries(LOOK_ALIKES)) {
  test(`a look-alike: ${what}`, async ({ home, k3s }) => {
    home.instance("k3s-2");
    await using other = await startBystander(home, { command: command(k3s.dir).split(" ") });
    for (const file of PID_FILES) k3s.pidFile(file, other.pid);
    k3s.staleSocket("ha.sock");
    await repairs(k3s, { removes: [...PID_FILES, "ha.sock"], because: [/is not ours: /] });
    other.assertAlive();
  });
}

/** Of these it cannot be known whose they are: nothing is signalled, and nothing removed. */
const DOUBTFUL: Record<string, (dir: string) => string> = {
  "a host agent of a directory that is gone": () => "limactl hostagent --pidfile /Volumes/gone/k3s/ha.pid k3s",
  "a host agent with a relative path": () => "limactl hostagent --pidfile k3s/ha.pid k3s",
  "a host agent whose path ps cannot print": (dir) =>
    `limactl hostagent --pidfile ${dir.replace("lima", "l??ma")}/ha.pid k3s`,
  "a limactl start, which will be a host agent": () => "limactl start k3s --foreground",
  "a program of Lima's without its arguments": () => "(limactl)",
  "a renamed limactl without a socket": (dir) => `limactl-2.1 hostagent --pidfile ${dir}/ha.pid k3s`,
  "a shell that will run it": (dir) => `sh -c limactl hostagent --pidfile ${dir}/ha.pid --socket ${dir}/ha.sock k3s`,
  "sudo": (dir) => `sudo -u zoe limactl hostagent --pidfile ${dir}/ha.pid k3s`,
};

for (const [what, command] of Object.entries(DOUBTFUL)) {
  test(`whose is it: ${what}`, async ({ home, k3s }) => {
    await using other = await startBystander(home, { command: command(k3s.dir).split(" ") });
    k3s.pidFile("ha.pid", other.pid);
    k3s.pidFile("vz.pid", IMPOSSIBLE_PID);
    const blockers = [new RegExp(`ha\\.pid: PID ${other.pid} is unknown`)];
    await leavesAlone(k3s, { state: "unknown", status: 75, blockers });
    other.assertAlive();
  });
}

// --- ps and lsof that fail, hang or lie ---------------------------------------------------------------------------------------------

const BAD_PS: Record<string, NonNullable<Twist["programs"]>[string]> = {
  "is missing": { does: "missing" },
  "is killed": { does: "be killed" },
  "fails and says why": { does: "answer", code: 1, stderr: "ps: cannot allocate memory\n" },
  "fails with another status": { does: "answer", code: 2 },
  "says nothing, of a process that is there": { does: "answer" },
  "says nothing and 1, of a process that is there": { does: "answer", code: 1 },
  "says something that is no table": { does: "answer", stdout: "illegal option -- o\nusage: ps\n" },
  "speaks of another process": { does: "answer", stdout: "  2     1     0 S    Thu Jan  1 00:00:00 2026 /bin/sh\n" },
  "leaves the command out": { does: "lie", pattern: " (\\d{4}) .*$", by: " $1 " },
  "leaves the start time out": { does: "lie", pattern: "\\w{3} \\w{3} [ \\d]\\d .* \\d{4} ", by: "" },
  "cuts its rows": { does: "lie", pattern: "^(.{20}).*$", by: "$1" },
  "prints dates in another language": { does: "lie", pattern: "\\w{3} \\w{3} ([ \\d]\\d)", by: "lun. 23 nov." },
};

for (const [how, ps] of Object.entries(BAD_PS)) {
  test(`ps ${how}: unknown, and nothing is touched`, async ({ home, k3s, bystander }) => {
    strew(k3s, bystander.pid);
    home.disk("data", { inUseBy: k3s.dir });
    k3s.staleSocket("ha.sock");
    k3s.sshConfig({ text: "" });
    const { report } = await leavesAlone(
      k3s,
      { state: "unknown", status: 75, blockers: PID_FILES.map((file) => new RegExp(`${file}: PID \\d+ is unknown`)) },
      guardWith({ programs: { ps } }),
    );
    assert.ok(report.blockers.every(({ hint }) => hint), "no hint");
  });
}

for (
  const how of [
    "is missing",
    "says nothing, of a process that is there",
    "cuts its rows",
    "leaves the command out",
  ] as const
) {
  test(`ps ${how}: a host agent that is alive is left alone`, async ({ k3s }) => {
    await using agent = await startAgent(k3s);
    const { status, report } = await pre(k3s, guardWith({ programs: { ps: BAD_PS[how]! } }));
    assert.deepEqual([status, report.state, report.steps], [75, "unknown", []]);
    assert.ok(agent.isAlive());
    assert.deepEqual([k3s.pid("ha.pid"), k3s.pid("vz.pid"), k3s.has("ha.sock")], [agent.pid, agent.pid, true]);
  });
}

for (
  const how of ["is missing", "says something that is no table", "cuts its rows", "leaves the command out"] as const
) {
  test(`ps -A ${how}, and a PID file is garbage: a process may live that no file names`, async ({ k3s }) => {
    k3s.pidFile("ha.pid", "");
    k3s.pidFile("vz.pid", IMPOSSIBLE_PID);
    k3s.staleSocket("ha.sock");
    const { report } = await leavesAlone(
      k3s,
      { state: "unknown", status: 75, blockers: [/all processes/] },
      guardWith({ programs: { ps: BAD_PS[how]! } }),
    );
    assert.ok(report.blockers[0]!.hint);
  });
}

test("ps hangs, with a child that holds its pipes: the guard does not, and leaves neither behind", async ({ home, k3s, bystander }) => {
  strew(k3s, bystander.pid);
  const before = allButLocks(home);
  const began = performance.now();
  const { status, report } = await pre(k3s, guardWith({ programs: { ps: { does: "hang" } } }));
  const seconds = (performance.now() - began) / 1000;
  assert.ok(seconds > 4 && seconds < 15, `${seconds} s`);
  assert.deepEqual([status, report.state], [75, "unknown"]);
  assert.match(report.blockers[0]!.because, /did not end within 5000 ms/);
  await eventually(() => assert.deepEqual(home.processes().filter((line) => line.includes("sleep 1000")), []));
  k3s.remove(LOCK);
  const after = allButLocks(home);
  assert.deepEqual(Object.keys(after), Object.keys(before));
});

const LSOF = "/usr/bin/lsof";
const ONE_DISK = { yaml: "additionalDisks:\n- data\n" };
const BAD_LSOF: Record<string, NonNullable<Twist["programs"]>[string]> = {
  "is missing": { does: "missing" },
  "hangs": { does: "hang" },
  "is killed": { does: "be killed" },
  "fails and says why": { does: "answer", code: 1, stderr: "lsof: status error on datadisk: Input/output error\n" },
  "says something that is no list": { does: "answer", stdout: "lsof: unsupported\nusage\n" },
};

for (const [how, lsof] of Object.entries(BAD_LSOF)) {
  test(
    `lsof ${how}: who has the disk is unknown, so no file of the instance is removed`,
    async ({ home, k3s, bystander }) => {
      const data = home.disk("data", { inUseBy: `${home.lima}/gone` });
      k3s.pidFile("vz.pid", bystander.pid);
      const twist = guardWith({ programs: { lsof }, limitsBy: lsof.does === "hang" ? 30 : 1 });
      const blockers = [/datadisk: whether a process has it open is unknown: .*lsof/];
      await leavesAlone(k3s, { state: "blocked", status: 75, blockers }, twist);
      assert.equal(data.inUseBy(), `${home.lima}/gone`);
    },
    { ...ONE_DISK, ignore: how === "is missing" || exists(LSOF) || exists("/usr/sbin/lsof") ? false : "no lsof" },
  );
}

test(
  "the clock is stepped by more than the machine is up: who has the disk is asked all the same",
  async ({ home, k3s }) => {
    const data = home.disk("data", { inUseBy: k3s.dir });
    k3s.pidFile("ha.pid", IMPOSSIBLE_PID, { ageSeconds: 600 });
    const twist = { programs: { lsof: { does: "missing" } }, wallMs: 7_200_000, uptimeMs: 3_600_000 } as const;
    await leavesAlone(k3s, { state: "blocked", status: 75, blockers: [/datadisk: whether .* lsof/] }, guardWith(twist));
    assert.equal(data.inUseBy(), k3s.dir);
  },
  ONE_DISK,
);

test("a disk that is a link to a device: who has it is asked too", async ({ home, k3s }) => {
  const data = home.disk("data", { inUseBy: k3s.dir });
  Deno.removeSync(`${data.dir}/datadisk`);
  Deno.symlinkSync("/dev/zero", `${data.dir}/datadisk`);
  const twist = guardWith({ programs: { lsof: { does: "missing" } } });
  await leavesAlone(k3s, { state: "blocked", status: 75, blockers: [/datadisk: whether .* lsof/] }, twist);
}, ONE_DISK);

// --- another lima-guard -------------------------------------------------------------------------------------------------------------

/** Another process that has the instance's lock. */
function holdLock(k3s: Instance, record: Record<string, unknown> | string = ""): Disposable {
  const text = typeof record === "string"
    ? record
    : `${JSON.stringify({ pid: Deno.pid, started: "", dir: k3s.dir, ...record })}\n`;
  const file = Deno.openSync(k3s.path(LOCK), { read: true, write: true, create: true });
  assert.ok(file.tryLockSync(true));
  file.truncateSync(0);
  file.writeSync(new TextEncoder().encode(text));
  return { [Symbol.dispose]: () => file.close() };
}

test("another lima-guard has the lock, and releases it: waited for", async ({ home, k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  const lock = holdLock(k3s, { role: "pre", phase: "working" });
  await using guard = spawnGuard(home, ["--pre", "k3s"]);
  await guard.waitForLine(/waits up to 10 s for lima-guard --pre, PID \d+/);
  assert.equal(k3s.pid("vz.pid"), bystander.pid);
  lock[Symbol.dispose]();
  const { status, stdout } = await guard.result();
  assert.equal(status, 0);
  assert.match(stdout, /ready to start/);
  assert.equal(k3s.has("vz.pid"), false);
});

for (
  const [what, record] of [
    ["a --pre that works on it", { role: "pre", phase: "working" }],
    ["a --run that is not yet supervising", { role: "run", phase: "preparing" }],
    ["a process, and the record is that of a --run killed long ago", { role: "run", phase: "supervising" }],
    ["a --stop", { role: "stop", phase: "working" }],
    ["a process that says nothing", ""],
    ["a process whose record is damaged", '{"pid": 4711, "dir":'],
    ["a process whose record is of another directory", { role: "run", phase: "supervising", dir: "/elsewhere/k3s" }],
    ["a process whose record says PID 0", { role: "run", phase: "supervising", pid: 0 }],
  ] as const
) {
  test(`the lock is held, and not released, by ${what}: try again`, async ({ k3s, bystander }) => {
    k3s.pidFile("vz.pid", bystander.pid);
    using _lock = holdLock(k3s, record);
    const twist = guardWith({ lockMs: 200 });
    const blockers = [/lima-guard\.lock: .*holds its lock.*--pre --lima-home/];
    await leavesAlone(k3s, { state: "unknown", status: 75, blockers }, twist);
  });
}

test("a --run has the lock and supervises: nothing to do", async ({ k3s }) => {
  await using guard = await running(k3s);
  await eventually(() => assert.equal(events(k3s).at(-1), "running"));
  await leavesAlone(k3s, { state: "running", status: 0 });
  assert.equal((await stopRun(guard)).status, 0);
});

test("a lock that no process holds says nothing, whatever stands in it", async ({ k3s, bystander }) => {
  holdLock(k3s, { role: "run", phase: "supervising" })[Symbol.dispose]();
  k3s.pidFile("vz.pid", bystander.pid);
  const { status } = await pre(k3s);
  assert.deepEqual([status, k3s.has("vz.pid")], [0, false]);
});

test("lima-guard six times at once: each step is taken once", async ({ home, k3s, bystander }) => {
  for (let round = 0; round < 3; round++) {
    const removes = strew(k3s, bystander.pid);
    const results = await Promise.all(Array.from({ length: 6 }, () => runGuard(home, ["--pre", "k3s", "--json"])));
    assert.deepEqual(results.map((result) => result.status), [0, 0, 0, 0, 0, 0]);
    const report: Report[] = results.map((result) => result.json().instances[0]);
    assert.deepEqual(report.map(({ state }) => state).sort(), [...Array(5).fill("clear"), "stale"]);
    const done = report.flatMap(({ steps }) => steps.map(({ what, outcome }) => `${what}: ${outcome}`));
    assert.deepEqual(done.length, removes.length);
    assert.ok(done.every((step) => step.endsWith(": done")), done.join("\n"));
  }
  assert.equal((k3s.read(JOURNAL) ?? "").trim().split("\n").length, 3);
});

test("a dry run while another lima-guard works: says so, and writes nothing", async ({ k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  using _lock = holdLock(k3s, { role: "pre", phase: "working" });
  const { status } = await dryRun(k3s, guardWith({ lockMs: 200 }));
  assert.equal(status, 75);
});

// --- other users --------------------------------------------------------------------------------------------------------------------

test(
  "root, where the instance is a user's: not permitted, the command is said, nothing is made",
  async ({ home, k3s, bystander }) => {
    const user = ordinaryUser()!;
    k3s.pidFile("vz.pid", bystander.pid);
    home.giveTo(user);
    const before = everything(home);
    for (const args of [["--dry-run"], []]) {
      const { status, stdout } = await runGuard(home, ["--pre", "k3s", ...args]);
      assert.equal(status, 77, stdout);
      assert.match(stdout, new RegExp(`\\bsudo -H -u ${user.name} lima-guard --pre --lima-home \\S+ k3s\\b`));
    }
    assert.deepEqual(everything(home), before);
  },
  { ignore: ordinaryUser() ? false : NO_ORDINARY_USER },
);

test(
  "an ordinary user, where the instance is root's: not permitted, nothing is made",
  async ({ home, k3s, bystander }) => {
    const user = ordinaryUser()!;
    k3s.pidFile("vz.pid", bystander.pid);
    const before = everything(home);
    const { status, stdout } = await runGuard(home, ["--pre", "k3s"], { user });
    assert.equal(status, 77, stdout);
    assert.match(stdout, /\bsudo -H -u root lima-guard --pre --lima-home \S+ k3s\b/);
    assert.deepEqual(everything(home), before);
  },
  { ignore: ordinaryUser() ? false : NO_ORDINARY_USER },
);

test("a user's LIMA_HOME in which root once left its own lock and journal", async ({ home, k3s }) => {
  const user = ordinaryUser()!;
  home.giveTo(user);
  await using other = await startBystander(home, { uid: user.uid, gid: user.gid });
  k3s.pidFile("vz.pid", other.pid);
  for (const file of [LOCK, JOURNAL]) {
    k3s.write(file, "", { mode: 0o644 });
    Deno.chownSync(k3s.path(file), 0, 0);
  }
  const { status, stderr } = await pre(k3s, { user });
  assert.equal(status, 0, stderr);
  assert.equal(k3s.has("vz.pid"), false);
  assert.match(stderr, /no journal: /);
  other.assertAlive();
}, { ignore: ordinaryUser() ? false : NO_ORDINARY_USER });

test(
  "the host agent of this instance, run by root through a mishap: its look says ours, its owner does not",
  async ({ home, k3s }) => {
    const user = ordinaryUser()!;
    await using agent = await startAgent(k3s); // as root
    home.giveTo(user);
    const before = allButLocks(home);
    const { status, report } = await pre(k3s, { user });
    assert.deepEqual([status, report.state, report.steps], [75, "unknown", []]);
    assert.match(report.blockers[0]!.because, /looks like this instance's host agent and belongs to uid 0/);
    assert.ok(agent.isAlive());
    k3s.remove(LOCK);
    assert.deepEqual(Object.keys(allButLocks(home)), Object.keys(before));
  },
  { ignore: ordinaryUser() ? false : NO_ORDINARY_USER },
);

// --- the journal ----------------------------------------------------------------------------------------------------------------------

test("the journal: a line that was cut does not spoil the next; one of 1 MiB is set aside", async ({ k3s, bystander }) => {
  k3s.write(JOURNAL, '{"time":"2026-01-01T00:00:00.000Z","ev');
  k3s.pidFile("vz.pid", bystander.pid);
  await pre(k3s);
  const [torn, line, rest] = (k3s.read(JOURNAL) ?? "").split("\n");
  assert.deepEqual([torn, JSON.parse(line ?? "").event, rest], ['{"time":"2026-01-01T00:00:00.000Z","ev', "pre", ""]);

  const old = `${"x".repeat(1024 * 1024)}\n`;
  k3s.write(JOURNAL, old);
  k3s.pidFile("vz.pid", bystander.pid);
  await pre(k3s);
  assert.equal(k3s.read("lima-guard.1.jsonl"), old);
  assert.equal((k3s.read(JOURNAL) ?? "").trim().split("\n").length, 1);

  // It cannot be set aside: that is said, and the line is written all the same.
  Deno.removeSync(k3s.path("lima-guard.1.jsonl"));
  Deno.mkdirSync(k3s.path("lima-guard.1.jsonl"));
  k3s.write(JOURNAL, old);
  k3s.pidFile("vz.pid", bystander.pid);
  assert.match((await pre(k3s)).stderr, /the journal is full and cannot be set aside: /);
  assert.match(k3s.read(JOURNAL) ?? "", /"event":"pre"/);
});

test("a clone brings its original's lock and journal along: they say nothing about it", async ({ home, k3s, bystander }) => {
  const clone = home.instance("clone");
  k3s.pidFile("vz.pid", bystander.pid);
  await pre(k3s);
  await cutOff(k3s);
  for (const file of [LOCK, JOURNAL, "ha.pid", "vz.pid", "ssh.config"]) {
    Deno.copyFileSync(k3s.path(file), clone.path(file));
  }
  await pre(clone);
  assert.equal(clone.has("vz.pid"), false);
  const lines = (clone.read(JOURNAL) ?? "").trim().split("\n").map((line) => JSON.parse(line).dir);
  assert.deepEqual(lines, [k3s.dir, clone.dir]);
  await starts(clone);
});

// --- helpers --------------------------------------------------------------------------------------------------------------------------

function fifo(path: string): void {
  const { success } = new Deno.Command("mkfifo", { args: [path] }).outputSync();
  assert.ok(success, `mkfifo ${path}`);
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
