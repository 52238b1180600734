/**
 * Who may change what root runs, reads or writes; the one handover to root and root's children; and that nothing of the
 * caller's surroundings decides. Real users, real owners and modes.
 */

import assert from "node:assert/strict";
import { checkPathOwners, type FileLook, ONLY_ROOT, pathComponents, trustOf } from "../install.ts";
import { VERSION } from "../lima_guard.ts";
import {
  ADA,
  AGENT,
  DAEMON,
  EVE,
  FakeMac,
  fixture,
  guarded,
  limactl,
  macTest,
  macWith,
  type Person,
  ROOT,
  ZOE,
} from "./install_mac.ts";

// ── the judgement ──

const look = (path: string, more: Partial<FileLook> = {}): FileLook => ({
  path,
  kind: "directory",
  uid: 0,
  gid: 0,
  mode: 0o755,
  dev: 1,
  ino: 1,
  size: 0,
  ...more,
});
const guard = (more: Partial<FileLook> = {}) => look("/opt/lima-guard", { kind: "file", ...more });

// What is on the way; whether a job of zoe's may run it, and whether root may put something there.
const ROWS: [what: string, way: FileLook[], run: boolean, place: boolean][] = [
  ["root's guard in root's folders", [look("/"), look("/opt"), guard()], true, true],
  ["the user's own guard", [look("/"), guard({ uid: 501, gid: 20 })], true, false],
  ["the user's own folder", [look("/"), look("/opt", { uid: 501 }), guard()], true, false],
  ["another user's guard", [look("/"), guard({ uid: 502 })], false, false],
  ["another user's folder", [look("/Users/eve", { uid: 502 }), guard()], false, false],
  ["a program that all can write", [guard({ mode: 0o757 })], false, false],
  ["a folder that all can write", [look("/opt", { mode: 0o777 }), guard()], false, false],
  ["a sticky folder that all can write", [look("/tmp", { mode: 0o1777 }), guard()], true, false],
  ["another user's file in a sticky folder", [look("/tmp", { mode: 0o1777 }), guard({ uid: 502 })], false, false],
  ["a file with the sticky bit that all can write", [guard({ mode: 0o1777 })], false, false],
  ["a folder of group admin", [look("/opt/homebrew", { gid: 80, mode: 0o775 }), guard()], true, false],
  ["a folder of group wheel", [look("/opt", { gid: 0, mode: 0o775 }), guard()], true, false],
  ["a folder of group staff", [look("/opt", { gid: 20, mode: 0o775 }), guard()], false, false],
  ["a program of group staff", [guard({ gid: 20, mode: 0o775 })], false, false],
  ["a group that can only read", [look("/opt", { gid: 20, mode: 0o755 }), guard({ gid: 20 })], true, true],
  ["a link of root's", [look("/opt", { kind: "link", mode: 0o777 }), guard()], true, true],
  ["another user's link", [look("/opt", { kind: "link", uid: 502, mode: 0o777 }), guard()], false, false],
];
for (const [what, way, run, place] of ROWS) {
  Deno.test(`checkPathOwners(): ${what}`, () => {
    const verdicts = [checkPathOwners(way, trustOf(501, "run")), checkPathOwners(way, ONLY_ROOT)];
    assert.deepEqual(verdicts.map((v) => v.why === undefined), [run, place], JSON.stringify(verdicts));
    for (const v of verdicts) assert.ok(v.why === undefined || /^ls -led \//.test(v.hint ?? ""));
  });
}

Deno.test("pathComponents() sees every link, every folder on the way to where it leads, and what is missing", () => {
  const files: Record<string, string> = {
    "/": "",
    "/a": "",
    "/a/x": "@../b/x",
    "/b": "@/real",
    "/real": "",
    "/real/x": "f",
  };
  const host = {
    stat: (path: string) => {
      const what = files[path];
      if (what === undefined) return "absent" as const;
      if (what.startsWith("@")) return look(path, { kind: "link", target: what.slice(1) });
      return look(path, { kind: what === "f" ? "file" : "directory" });
    },
  };
  assert.deepEqual(pathComponents(host, "/a/./x").way.map((l) => l.path), [
    "/",
    "/a",
    "/a/x",
    "/",
    "/b",
    "/real",
    "/real/x",
  ]);
  assert.deepEqual(pathComponents(host, "/a/no/such").missing, ["/a/no", "/a/no/such"]);
});

// ── --check runs nothing that it distrusts, and nothing as the wrong user ──

for (const person of [ROOT, ZOE, ADA, EVE]) {
  macTest(`--check as ${person.name}: an open guard is run by no process, a safe one by zoe alone`, async () => {
    const { mac } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    mac.forget();
    const safe = await mac.run(["--check", "--json", "default"], { as: person });
    assert.equal(safe.status, 0, safe.stdout);
    const mayAsk = person === ROOT || person === ZOE;
    assert.deepEqual(mac.guardUids(), mayAsk ? [501] : []);
    // Not running: then another user cannot tell.
    Deno.removeSync(`${mac.state}/alive/${mac.job("system", DAEMON)!.pid}`);
    const idle = await mac.run(["--check", "--json", "default"], { as: person });
    assert.deepEqual([idle.status, idle.json().state], mayAsk ? [0, "guarded"] : [75, "not asked"], idle.stdout);
    if (!mayAsk) assert.equal(idle.json().blockers[0].hint, "sudo -H -u zoe lima-guard --check default");
    mac.forget();
    for (const spoil of [() => Deno.chmodSync(mac.guard, 0o777), () => Deno.chownSync(mac.guard, EVE.uid, 20)]) {
      spoil();
      const open = await mac.run(["--check", "--json", "default"], { as: person });
      assert.deepEqual([open.status, open.json().state], [1, "broken"], open.stdout);
      assert.match(open.stdout, /can be written by every user|belongs to user 503/);
    }
    assert.deepEqual(mac.guardUids(), [], "it was judged first");
  });
}

// ── root and other users' folders ──

// What is spoilt before root installs a daemon, and what is said.
const SPOILT: [what: string, spoil: (mac: FakeMac) => void, words: RegExp, args?: (mac: FakeMac) => string[]][] = [
  [
    "the guard's folder is another user's",
    (mac) => mac.folder(`${mac.root}/their`, EVE),
    /belongs to user 503/,
    (mac) => [
      "--guard-dir",
      `${mac.root}/their`,
    ],
  ],
  [
    "the guard's folder can be written by group admin",
    (mac) => mac.folder(`${mac.root}/their`, { ...ROOT, gid: 80 }, 0o775),
    /can be written by group 80/,
    (mac) => ["--guard-dir", `${mac.root}/their`],
  ],
  [
    "a link on the way leads to another user's folder",
    (mac) => {
      mac.folder(`${mac.root}/home/eve/bin`, EVE);
      Deno.symlinkSync(`${mac.root}/home/eve/bin`, `${mac.root}/their`);
    },
    /belongs to user 503/,
    (mac) => ["--guard-dir", `${mac.root}/their`],
  ],
  ["the daemon's plist is its user's", (mac) => Deno.chownSync(plistOf(mac), 501, 20), /belongs to user 501/],
  [
    "the daemon's plist can be written by its group",
    (mac) => Deno.chmodSync(plistOf(mac), 0o664),
    /written by group 0/,
  ],
  ["the daemon's plist can be written by all", (mac) => Deno.chmodSync(plistOf(mac), 0o666), /every user/],
  ["the daemon's plist is a link into a user's folder", (mac) => {
    Deno.renameSync(plistOf(mac), `${mac.home}/mine.plist`);
    Deno.chownSync(`${mac.home}/mine.plist`, 0, 0);
    Deno.symlinkSync(`${mac.home}/mine.plist`, plistOf(mac));
  }, /belongs to user 501/],
  [
    "the folder of daemons has an access control list",
    (mac) => mac.write(`${mac.state}/acl`, `${mac.daemons}\tuser:eve allow add_file,delete_child\n`),
    /access control list: .*user:eve/,
  ],
  [
    "root's binary is another user's",
    (mac) => Deno.chownSync(mac.source, 503, 20),
    /Cannot copy .*belongs to user 503/,
  ],
  ["root's binary can be written by all", (mac) => Deno.chmodSync(mac.source, 0o777), /Cannot copy .*every user/],
  [
    "root's binary is on another volume",
    (mac) => mac.settings.devices = [{ prefix: `${mac.root}/src`, dev: 99 }],
    /Cannot copy .*src is not on the boot volume/,
  ],
  [
    "root's binary has an access control list",
    (mac) => mac.write(`${mac.state}/acl`, `${mac.root}/src\tgroup:staff allow add_file,delete_child\n`),
    /Cannot copy .*access control list: .*group:staff/,
  ],
  [
    "root's binary is in a folder like /tmp",
    (mac) => Deno.chmodSync(`${mac.root}/src`, 0o1777),
    /Cannot copy .*every user/,
  ],
  [
    "the guard is on another volume",
    (mac) => {
      mac.settings.devices = [{ prefix: `${mac.system}/vol`, dev: 99 }];
      mac.putGuard(`${mac.system}/vol/lima-guard`);
    },
    /not on the boot volume/,
    (mac) => ["--guard", `${mac.system}/vol/lima-guard`],
  ],
  [
    "the guard is quarantined",
    (mac) => {
      mac.putGuard(`${mac.system}/opt/lima-guard`);
      mac.write(`${mac.state}/quarantine`, `${mac.system}/opt/lima-guard\n`);
    },
    /quarantined/,
    (mac) => ["--guard", `${mac.system}/opt/lima-guard`],
  ],
  ["limactl is gone", (mac) => Deno.removeSync(limactl(mac)[0]!), /the program .*limactl is gone/],
  [
    "the program for events is another user's",
    (mac) => mac.write(`${mac.root}/hook`, "", EVE, 0o755),
    /--on-event: .*503/,
    (
      mac,
    ) => ["--on-event", `${mac.root}/hook`],
  ],
];
const plistOf = (mac: FakeMac) => `${mac.daemons}/${DAEMON}.plist`;

for (const [what, spoil, words, args] of SPOILT) {
  macTest(`root changes nothing when ${what}, and a dry run says the same`, async () => {
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    spoil(mac);
    const [before, pid] = [mac.tree(), job()!.pid];
    for (const how of ["--dry-run", "--yes"]) {
      const run = await mac.run([how, "--json", ...args?.(mac) ?? [], "default"]);
      assert.deepEqual([run.status, JSON.parse(run.stdout).changed], [1, false], run.stdout);
      assert.match(run.stdout, words);
    }
    assert.deepEqual([mac.tree(), job()!.pid], [before, pid]);
    assert.ok(!mac.log().some((line) => line.includes("bootout")));
  });
}

// Homebrew's folders: whose they are, and whether lima-guard is copied from there.
const CELLARS: [what: string, owner: Person, mode: number, isTaken: boolean][] = [
  ["root's, of group admin", { ...ROOT, gid: 80 }, 0o775, true],
  ["of an administrator and group admin", { ...ADA, gid: 80 }, 0o775, true],
  ["of root and group wheel", ROOT, 0o775, true],
  ["closed to its group", { ...ROOT, gid: 20 }, 0o755, true],
  ["of group staff", { ...ADA, gid: 20 }, 0o775, false],
  ["open to all", { ...ADA, gid: 80 }, 0o777, false],
  ["another user's", { ...EVE, gid: 80 }, 0o775, false],
];
for (const [what, owner, mode, isTaken] of CELLARS) {
  for (const as of [ROOT, ADA]) {
    macTest(`a lima-guard of Homebrew's in folders ${what}, as ${as === ROOT ? "root by sudo" : as.name}`, async () => {
      const { mac, job } = macWith("daemon");
      await using _ = mac;
      const cellar = `${mac.root}/opt/homebrew/Cellar/lima-guard/1/bin`;
      const link = `${mac.root}/opt/homebrew/bin/lima-guard`;
      mac.putGuard(`${cellar}/lima-guard`, "", owner);
      Deno.symlinkSync("../Cellar/lima-guard/1/bin/lima-guard", link);
      for (const folder of ["", "/bin", "/Cellar", "/Cellar/lima-guard", "/Cellar/lima-guard/1"]) {
        mac.folder(`${mac.root}/opt/homebrew${folder}`, owner, mode);
      }
      mac.own(cellar, owner, mode);
      const [before, pid] = [mac.tree(), job()!.pid];
      // As the shell finds it: by its link.
      const env: Record<string, string> = as === ROOT ? { SUDO_UID: String(ADA.uid) } : {};
      const args = [link, "--install", "--yes", "default"];
      const run = await mac.run(args, { as, program: `${mac.root}/lib/run`, env });
      assert.equal(run.status, isTaken ? 0 : 1, run.stdout + run.stderr);
      const said = run.stderr.match(/copies \S+lima-guard, though \S+opt\/homebrew can be written by group \w+$/gm) ??
        [];
      // By the person's process, and by root's.
      const times = as === ROOT ? 1 : 2;
      assert.equal(said.length, isTaken && (mode & 0o020) !== 0 ? times : 0, run.stderr);
      if (isTaken) return assert.deepEqual(job()!.args, guarded(mac));
      assert.match(run.stdout, /Cannot copy \S+lima-guard: .*(can be written by|belongs to user 503)/);
      assert.deepEqual([mac.tree(), job()!.pid], [before, pid]);
    });
  }
}

macTest("what another user could have put in a place is judged before root reads it, and is not read", async () => {
  const { mac } = macWith("daemon", { trace: true });
  await using _ = mac;
  const [dir, theirs] = [`${mac.root}/guards`, `${mac.root}/home/eve/jobs`];
  mac.folder(dir);
  assert.equal((await mac.run(["--yes", "--guard-dir", dir, "default"])).status, 0);
  mac.folder(theirs, EVE);
  Deno.symlinkSync(mac.write(`${theirs}/x.plist`, fixture(mac, "lima-2.2-daemon"), EVE), `${mac.daemons}/x.plist`);
  const spoilt: [what: string, spoil: () => void, path: string][] = [
    ["the guard's folder", () => mac.own(dir, EVE, 0o777), `${dir}/lima-guard`],
    ["the source", () => mac.own(mac.source, EVE), mac.source],
  ];
  for (const [what, spoil, path] of spoilt) {
    spoil();
    for (const words of [["--install", "--yes"], ["--check"], ["--uninstall", "--purge", "--dry-run"]]) {
      mac.forget();
      await mac.run([...words, "default"]);
      const reads = mac.reads();
      assert.ok(reads.length > 0, what);
      assert.deepEqual(reads.filter((line) => line === `0 ${path}` || line.includes(theirs)), [], words.join(" "));
      assert.deepEqual(reads.filter((line) => line.endsWith("/x.plist")), [], words.join(" "));
    }
  }
});

macTest("the program for events is judged in either way of writing the option", async () => {
  const { mac, file, job } = macWith("daemon");
  await using _ = mac;
  const hook = mac.write(`${mac.root}/hook`, "#!/bin/sh\n", ROOT, 0o755);
  assert.equal((await mac.run(["--yes", "--on-event", hook, "default"])).status, 0);
  const joined = `<string>--on-event=${hook}</string>`;
  const text = Deno.readTextFileSync(file).replace(/<string>--on-event<\/string>\s*<string>[^<]*<\/string>/, joined);
  mac.write(file, text);
  assert.ok(text.includes(joined));
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.equal((await mac.run(["--check", "default"])).status, 0);
  mac.own(hook, EVE);
  const [before, pid] = [mac.tree(), job()!.pid];
  const checked = await mac.run(["--check", "--json", "default"]);
  assert.deepEqual([checked.status, checked.json().state], [1, "broken"], checked.stdout);
  assert.match(checked.stdout, /--on-event: .*belongs to user 503/);
  const refused = await mac.run(["--yes", "--restart", "--json", "default"]);
  assert.deepEqual([refused.status, refused.json().state], [1, "refused"], refused.stdout);
  assert.deepEqual([mac.tree(), job()!.pid], [before, pid]);
});

// What becomes of the program for events; what is said.
const EVENT_PROGRAMS: [what: string, spoil: (hook: string) => void, words: RegExp][] = [
  ["can be written by all", (hook) => Deno.chmodSync(hook, 0o777), /written by every user/],
  ["is gone", (hook) => Deno.removeSync(hook), /is not there/],
  ["cannot be run", (hook) => Deno.chmodSync(hook, 0o644), /is not there, or is no program/],
  [
    "is a folder now",
    (hook) => {
      Deno.removeSync(hook);
      Deno.mkdirSync(hook);
    },
    /is not there, or is no program/,
  ],
];
for (const [what, spoil, words] of EVENT_PROGRAMS) {
  macTest(`a program for events that is remembered and ${what} is refused, and can be taken out`, async () => {
    const { mac, file, text, job } = macWith("daemon");
    await using _ = mac;
    const hook = mac.write(`${mac.root}/hook`, "#!/bin/sh\n", ROOT, 0o755);
    assert.equal((await mac.run(["--yes", "--on-event", hook, "default"])).status, 0);
    mac.write(file, text);
    spoil(hook);
    const before = mac.tree();
    for (const how of ["--check", "--install"]) {
      const run = await mac.run([how, "--yes", "--json", "default"]);
      assert.equal(run.status, 1, run.stdout);
      assert.match(run.json().blockers[0].because, words);
      assert.equal(run.json().blockers[0].hint, "lima-guard --install --no-on-event default");
    }
    assert.deepEqual(mac.tree(), before);
    const asked = await mac.run(["--yes", "--on-event", hook, "--json", "default"]);
    assert.deepEqual([asked.status, asked.json().blockers[0].hint], [1, `ls -led ${hook}`], asked.stdout);
    assert.equal((await mac.run(["--yes", "--no-on-event", "default"])).status, 0);
    assert.deepEqual(job()!.args, guarded(mac));
    assert.equal((await mac.run(["--check", "default"])).status, 0);
  });
}

macTest("a dry run of a daemon prints for any person the steps that root would do", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  mac.settings.devices = [{ prefix: `${mac.home}/.lima`, dev: 99 }];
  const before = mac.tree();
  const steps = async (as: Person, words: string[]) => {
    const run = await mac.run([...words, "--dry-run", "default"], { as });
    assert.equal(run.status, 0, run.stdout + run.stderr);
    return [...run.stdout.matchAll(/^ {2}would (.*)$/gm)].map((m) => m[1]);
  };
  const install = await steps(ADA, []);
  assert.deepEqual(install, await steps(ROOT, []));
  for (const word of ["--stop --json", "lima-guard --version", "mkdir -p", "bootout", "bootstrap"]) {
    assert.equal(install.filter((line) => line?.includes(word)).length, 1, `${word}\n${install.join("\n")}`);
  }
  assert.deepEqual(mac.tree(), before);
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  const uninstall = await steps(ADA, ["--uninstall"]);
  assert.deepEqual(uninstall, await steps(ROOT, ["--uninstall"]));
});

macTest("a lima-guard in a folder that is emptied at boot is refused", async () => {
  const folder = Deno.makeTempDirSync({ dir: "/tmp", prefix: "guard-" });
  try {
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    Deno.chmodSync(folder, 0o755);
    mac.settings.devices = [{ prefix: "/tmp", dev: Deno.lstatSync("/").dev }];
    mac.write(`${folder}/lima-guard`, Deno.readTextFileSync(mac.source), ROOT, 0o755);
    Deno.symlinkSync(folder, `${mac.system}/link`);
    for (const spelt of [folder, `/opt/..${folder}`, `${mac.system}/link`]) {
      const run = await mac.run(["--yes", "--guard", `${spelt}/lima-guard`, "default"]);
      assert.equal(run.status, 1, run.stdout);
      assert.match(run.stdout, /\/tmp is emptied at boot/);
      assert.deepEqual(job()!.args, limactl(mac));
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

macTest("what another user could have noted beside a plist is not remembered", async () => {
  for (const [owner, mode, acl] of [[ADA, 0o644], [ROOT, 0o666], [ROOT, 0o664], [ROOT, 0o644, "user:eve"]] as const) {
    const { mac, file, text, job } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    const other = mac.putGuard(`${mac.system}/opt/lima-guard`);
    mac.write(file, text);
    const noted = { guard: other, options: ["--on-event", "/bin/sh"], keepAlive: true };
    mac.write(`${file}.lima-guard.json`, JSON.stringify(noted), owner, mode);
    if (acl) mac.write(`${mac.state}/acl`, `${file}.lima-guard.json\t${acl} allow write,append\n`);
    const run = await mac.run(["--yes", "default"]);
    assert.equal(run.status, 0, run.stdout);
    assert.deepEqual(job()!.args, [mac.guard, "--run", "default", "--", ...limactl(mac)]);
  }
});

macTest("a place is judged by where it is, not by how it is spelt", async () => {
  const answers = new Set<string>();
  for (const spelling of ["LD/x", "D/../LaunchDaemons/x", "D//x", "L/LaunchDaemons/x", "D/x"]) {
    await using mac = FakeMac.make();
    Deno.symlinkSync(mac.daemons, `${mac.root}/LD`);
    Deno.symlinkSync(`${mac.system}/Library`, `${mac.root}/L`);
    const file = mac.write(`${mac.daemons}/x.plist`, fixture(mac, "lima-2.2-daemon"), ROOT, 0o666);
    const path = `${spelling}.plist`.replace(/^LD/, `${mac.root}/LD`).replace(/^L\//, `${mac.root}/L/`).replace(
      /^D/,
      mac.daemons,
    );
    const run = await mac.run(["--yes", "--no-reload", "--json", "--plist", path, "default"]);
    answers.add(`${run.status} ${run.json().blockers[0].because}`.replaceAll(mac.root, ""));
    assert.equal(Deno.lstatSync(file).mode! & 0o777, 0o666);
    assert.ok(!Deno.readTextFileSync(file).includes("--run"));
  }
  assert.equal(answers.size, 1, [...answers].join("\n"));
  assert.match([...answers][0]!, /^1 .*can be written by every user/);
});

macTest(
  "a plist of root's in a user's folder is refused, and a link or a FIFO there is not followed by root",
  async () => {
    await using mac = FakeMac.make({ quick: false });
    const victim = mac.write(`${mac.root}/victim`, "secret", ROOT, 0o600);
    const hard = mac.write(`${mac.daemons}/a.plist`, fixture(mac, "lima-2.2-agent"));
    Deno.linkSync(hard, `${mac.agents}/io.lima-vm.autostart.default.plist`);
    const refused = await mac.run(["--yes", "--plist", `${mac.agents}/io.lima-vm.autostart.default.plist`, "default"]);
    assert.equal(refused.status, 1, refused.stdout);
    assert.match(refused.stdout, /belongs to user 0, not to user 501/);
    Deno.removeSync(`${mac.agents}/io.lima-vm.autostart.default.plist`);
    new Deno.Command("mkfifo", { args: [`${mac.agents}/fifo.plist`] }).outputSync();
    Deno.chownSync(`${mac.agents}/fifo.plist`, 501, 20);
    const fifo = await mac.run(["--check", "--plist", `${mac.agents}/fifo.plist`, "default"]);
    assert.notEqual(fifo.status, 0);
    assert.equal(Deno.lstatSync(victim).mode! & 0o777, 0o600);
  },
);

macTest("an agent's plist that others can change is refused, and a trouble for --check", async () => {
  const loose = [[0o666, 20], [0o664, 20], [0o664, 80]].map(([mode, gid = 20]) => ({ mode, owner: { ...ZOE, gid } }));
  for (const { mode = 0o644, owner } of [...loose, { owner: ADA }, { owner: ROOT }]) {
    const { mac, file, as } = macWith("agent");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    mac.own(file, owner, mode);
    const checked = await mac.run(["--check", "default"], { as });
    assert.equal(checked.status, 1, checked.stdout);
    assert.match(checked.stdout, /broken\n.*plist: .*(launchd refuses it|can be written by)/);
    const refused = await mac.run(["--yes", "--json", "--restart", "default"], { as });
    assert.deepEqual([refused.status, refused.json().state], [1, "refused"], refused.stdout);
    if (owner.uid === ZOE.uid) continue;
    assert.match(refused.json().blockers[0].because, /belongs to user \d+, not to user 501/);
    assert.equal(refused.json().blockers[0].hint, `sudo chown 501 ${file}`);
  }
});

// The access control list of the folder of zoe's agents, and its mode; what --check and an install say to her.
const FOLDERS: [acl: string, mode: number, words: RegExp | undefined][] = [
  ["", 0o777, /LaunchAgents can be written by every user/],
  ["user:eve allow add_file,delete_child", 0o755, /has an access control list: .*user:eve/],
  ["user:zoe allow add_file,delete_child", 0o755, undefined],
];
for (const [acl, mode, words] of FOLDERS) {
  macTest(`a folder of agents of mode ${mode.toString(8)} ${acl}: --check and install agree`, async () => {
    const { mac, as } = macWith("agent");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    Deno.chmodSync(mac.agents, mode);
    mac.write(`${mac.state}/acl`, `${mac.agents}\t${acl}\n`);
    for (const how of ["--check", "--install"]) {
      const run = await mac.run([how, "--yes", "--json", "default"], { as });
      assert.equal(run.status, words ? 1 : 0, run.stdout);
      if (!words) continue;
      assert.match(run.json().blockers[0].because, words);
      assert.match(run.json().blockers[0].hint, new RegExp(`^ls -led .*${mac.agents}( |$)`));
    }
  });
}

macTest("the logs of a daemon on another volume are made by its user, in his own folder", async () => {
  const { mac, file, text } = macWith("daemon");
  await using _ = mac;
  mac.settings.devices = [{ prefix: `${mac.home}/.lima`, dev: 99 }];
  const victim = mac.write(`${mac.root}/victim`, "secret", ROOT, 0o600);
  const logs = `${mac.home}/Library/Logs/lima-guard`;
  mac.folder(`${mac.home}/Library/Logs`, ZOE);
  mac.folder(logs, ZOE);
  Deno.symlinkSync(victim, `${logs}/default.stdout.log`);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(Deno.readTextFileSync(file).includes(`${logs}/default.stdout.log`));
  const after = Deno.lstatSync(victim);
  assert.deepEqual([after.uid, after.mode! & 0o777, Deno.readTextFileSync(victim)], [0, 0o600, "secret"]);
  assert.equal((await mac.run(["--check", "default"])).status, 0);
  assert.equal((await mac.run(["--uninstall", "--yes", "default"])).status, 0);
  assert.equal(Deno.readTextFileSync(file), text);
});

macTest("/usr/local may be Homebrew's: then the guard goes where only root can change it", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  mac.own(`${mac.system}/usr/local`, { ...ADA, gid: 80 }, 0o775);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.equal(job()!.args[0], `${mac.system}/Library/PrivilegedHelperTools/lima-guard`);
});

// ── the surroundings ──

for (const umask of [0o000, 0o022, 0o027, 0o077]) {
  macTest(
    `umask ${umask.toString(8).padStart(3, "0")}: the same tree as root, handed over and as the agent's owner`,
    async () => {
      const modes = (tree: string[]) => tree.map((row) => row.split(" ").slice(0, 3).join(" "));
      const trees: string[][] = [];
      for (
        const [kind, as, mask] of [["daemon", ROOT, umask], ["daemon", ROOT, 0o022], ["daemon", ADA, umask], [
          "agent",
          ZOE,
          umask,
        ], ["agent", ZOE, 0o022]] as const
      ) {
        const { mac } = macWith(kind);
        await using _ = mac;
        const run = await mac.run(["--yes", "default"], { as, umask: mask });
        assert.equal(run.status, 0, run.stdout + run.stderr);
        trees.push(modes(mac.tree()));
      }
      assert.deepEqual(trees[0], trees[1]);
      assert.deepEqual(trees[2], trees[1]);
      assert.deepEqual(trees[3], trees[4]);
    },
  );
}

macTest("no PATH, HOME, TMPDIR or working directory of the caller's decides what root does", async () => {
  const { mac, file, text } = macWith("daemon", { quick: false });
  await using _ = mac;
  const poison = `${mac.home}/poison`;
  mac.folder(poison, ZOE);
  mac.folder(`${mac.root}/tmp`, ROOT, 0o777);
  const tools = ["id", "plutil", "codesign", "sudo", "launchctl", "ls", "head", "mkdir", "sysctl", "xattr", "env"];
  for (const tool of tools) {
    mac.write(`${poison}/${tool}`, `#!/bin/sh\ntouch ${mac.state}/poisoned\nexit 1\n`, ZOE, 0o755);
  }
  const env = {
    PATH: `${poison}:/usr/bin:/bin`,
    HOME: `${mac.root}/home/ada`,
    TMPDIR: `${mac.root}/tmp`,
    LIMA_HOME: "/nonsense",
  };
  for (const as of [ROOT, ADA]) {
    const options = { as, env, cwd: poison };
    mac.forget();
    mac.fault("plutil:1 1");
    assert.equal((await mac.run(["--yes", "default"], options)).status, 1, "a rollback");
    mac.forget();
    for (const args of [["--yes", "default"], ["--check", "default"], ["--uninstall", "--yes", "default"]]) {
      const run = await mac.run(args, options);
      assert.ok(run.status === 0 || (as === ADA && args[0] === "--check"), run.stdout + run.stderr);
    }
    assert.equal(Deno.readTextFileSync(file), text);
    assert.deepEqual(mac.paths(), ["/usr/bin:/bin:/usr/sbin:/sbin"]);
  }
  assert.ok(!mac.exists(`${mac.state}/poisoned`));
  assert.deepEqual([...Deno.readDirSync(`${mac.root}/tmp`)], []);
});

macTest("a standard input that is closed is none to ask at, and changes nothing else", async () => {
  const { mac, file, text, job } = macWith("daemon");
  await using _ = mac;
  const unasked = await mac.run(["default"], { isDeaf: true });
  assert.equal(unasked.status, 1, unasked.stderr);
  assert.match(unasked.stdout, /no terminal to ask at \(hint: --yes\)/);
  const run = await mac.run(["--yes", "default"], { as: ADA, isDeaf: true });
  assert.deepEqual([run.status, run.stderr.match(/\nlima-guard: failed/)], [0, null], run.stdout + run.stderr);
  assert.deepEqual(job()!.args, guarded(mac));
  assert.equal((await mac.run(["--uninstall", "--yes", "default"], { isDeaf: true })).status, 0);
  assert.deepEqual([Deno.readTextFileSync(file), job()!.args], [text, limactl(mac)]);
});

macTest(
  "the child that is the job's user has nothing of root's: no group, no descriptor, no folder, no variable",
  async () => {
    const { mac } = macWith("daemon", { quick: false });
    await using _ = mac;
    const seen = `${mac.state}/seen`;
    mac.putGuard(mac.source, CHILD);
    const env = { LIMA_HOME: "/nonsense", SSH_AUTH_SOCK: "/nonsense", TZ: "UTC", TMPDIR: "/nonsense" };
    for (const as of [ROOT, ADA]) {
      const run = await mac.run(["--yes", "--restart", "default"], {
        as,
        env,
        umask: 0o077,
        cwd: `${mac.root}/src`,
        isDeaf: as === ADA,
      });
      assert.equal(run.status, 0, run.stdout + run.stderr);
    }
    assert.equal((await mac.run(["--check", "default"], { env, umask: 0o077 })).status, 0);
    const children = Deno.readTextFileSync(seen).trim().split("\n").map((line) => JSON.parse(line));
    assert.ok(
      ["--version", "--stop"].every((task) => children.some((c) => c.args[0] === task)),
      String(children.length),
    );
    for (const { args, ids, cwd, umask, env, files } of children) {
      assert.deepEqual([ids, cwd, umask], [[501, 501, "20 20", "20 20"], "/", 0o022], args[0]);
      const { HOME, USER, LOGNAME, PATH, ...more } = env;
      assert.deepEqual([HOME, USER, LOGNAME, PATH], [mac.home, "zoe", "zoe", "/usr/bin:/bin:/usr/sbin:/sbin"]);
      assert.deepEqual(Object.keys(more).filter((name) => !/^(SUDO_UID|SUDO_USER|NO_COLOR|TERM|LANG)$/.test(name)), []);
      // Its own script, pipes, /dev/null.
      assert.deepEqual(
        files.filter((file: string) => file.startsWith("/") && file !== mac.guard && file !== "/dev/null"),
        [],
      );
    }
  },
);

/** What a lima-guard writes down of itself when it runs as zoe, before it does anything. */
const CHILD = `BEGIN {
  require Cwd;
  if ($> == 501) {
    sub json { '"' . ($_[0] =~ s/(["\\\\])/\\\\$1/gr) . '"' }
    my @files = map { readlink "/proc/self/fd/$_" } 0 .. 63;
    my %e = %ENV;
    open my $seen, '>>', state_dir() . '/seen';
    printf $seen qq({"args":[%s],"ids":[%d,%d,"%s","%s"],"cwd":%s,"umask":%d,"env":{%s},"files":[%s]}\\n),
      join(',', map { json($_) } @ARGV), $<, $>, $(, $), json(Cwd::getcwd()), umask,
      join(',', map { json($_) . ':' . json($e{$_}) } keys %e), join(',', map { json($_) } grep { defined } @files);
  }
}
`;

// ── the handover ──

macTest("a person who may use sudo hands the whole command over once, by the line that is printed", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  mac.conf("sudo_calls=1");
  const run = await mac.run(["--yes", "--json", "--exit-timeout", "45", "default"], { as: ADA });
  assert.equal(run.status, 0, run.stdout + run.stderr);
  assert.deepEqual([run.json().state, JSON.parse(run.stdout).changed], ["guarded", true]);
  const sudos = mac.log().filter((line) => line.startsWith("502: sudo"));
  assert.equal(sudos.length, 1, sudos.join("\n"));
  const words = `sudo -n ${mac.source} --install --exit-timeout 45 --yes --json default`;
  assert.equal(sudos[0], `502: ${words}`);
  assert.ok(run.stderr.includes(`${mac.root}/bin/${words}`), run.stderr);
  assert.equal(job()!.timeout, 45);
  const files = mac.tree().filter((row) => /libexec|before-lima-guard/.test(row));
  assert.ok(files.length > 2 && files.every((row) => / 0:0 /.test(row)), files.join("\n"));
});

macTest(
  "the line that is printed can be typed, and does the same; a LIMA_HOME of the shell is not in it, and is said",
  async () => {
    for (const canSudo of [true, false]) {
      const { mac, job } = macWith("daemon");
      await using _ = mac;
      if (!canSudo) mac.conf("sudo=denied");
      const env = { LIMA_HOME: "/nonsense", COLIMA_HOME: "/nonsense", XDG_CONFIG_HOME: "/nonsense" };
      const words = ["--yes", "--exit-timeout", "45", "--on-event", "/bin/true", "default"];
      const first = await mac.run(words, { as: ADA, env });
      assert.equal(first.status, canSudo ? 0 : 77, first.stdout + first.stderr);
      for (const name of Object.keys(env)) {
        assert.ok(
          first.stderr.includes(`lima-guard: ${name} of this shell is not used (hint: --lima-home DIR)\n`),
          name,
        );
      }
      const line = canSudo
        ? /hands over to root: (.*)/.exec(first.stderr)?.[1]
        : /\(hint: (sudo [^)]*)\)/.exec(first.stdout)?.[1];
      assert.ok(line !== undefined && !line.includes("nonsense"), first.stdout + first.stderr);
      // The same Mac once more, where nothing has been run.
      const { mac: other, job: otherJob } = macWith("daemon");
      await using _other = other;
      const run = await other.type(line.replaceAll(mac.root, other.root), ADA);
      assert.equal(run.code, 0, run.output);
      assert.deepEqual(otherJob()!.args, guarded(other, other.guard, "--timeout", "45", "--on-event", "/bin/true"));
      if (!canSudo) continue;
      const same = (one: FakeMac) => one.tree().map((row) => row.replaceAll(one.root, "ROOT"));
      assert.deepEqual([same(other), otherJob()!.timeout], [same(mac), job()!.timeout]);
    }
  },
);

macTest("a path that begins with ~/ is one of the caller's home, also behind sudo", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  const hook = mac.write(`${mac.system}/usr/local/hook`, "#!/bin/sh\n", ROOT, 0o755);
  const env = { HOME: `${mac.system}/usr/local` };
  const run = await mac.run(["--yes", "--on-event", "~/hook", "default"], { as: ADA, env });
  assert.equal(run.status, 0, run.stdout + run.stderr);
  assert.ok(mac.log().some((line) => line.startsWith("502: sudo") && line.includes(`--on-event ${hook} `)));
  assert.deepEqual(job()!.args, guarded(mac, mac.guard, "--on-event", hook));
});

macTest("a refusal comes before the prompt; a sudo that refuses is 77; nothing is touched", async () => {
  const rows: [
    as: Person,
    spoil: (mac: FakeMac) => void,
    env: Record<string, string>,
    status: number,
    sudos: number,
  ][] = [
    [ADA, (mac) => Deno.chmodSync(plistOf(mac), 0o666), {}, 1, 0],
    [ADA, (mac) => Deno.removeSync(limactl(mac)[0]!), {}, 1, 0],
    [ADA, (mac) => Deno.chmodSync(mac.source, 0o777), {}, 1, 0],
    [ADA, (mac) => mac.conf("sudo=denied"), {}, 77, 1],
    [EVE, () => {}, {}, 77, 1],
    [ADA, () => {}, { SUDO_UID: "501" }, 77, 0],
  ];
  for (const [as, spoil, env, status, sudos] of rows) {
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    spoil(mac);
    const [before, pid] = [mac.tree(), job()!.pid];
    const run = await mac.run(["--yes", "--json", "default"], { as, env });
    assert.deepEqual([run.status, run.json().state], [status, "refused"], run.stdout + run.stderr);
    assert.equal(mac.log().filter((line) => line.includes(": sudo")).length, sudos, mac.log().join("\n"));
    if (status === 77) assert.match(run.json().blockers[0].hint, /^sudo lima-guard --install --yes --json default$/);
    assert.deepEqual([mac.tree(), job()!.pid], [before, pid]);
  }
});

macTest("the handover carries relative paths as absolute ones", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  const args = ["--yes", "--plist", `${DAEMON}.plist`, "default"];
  const run = await mac.run(args, { as: ADA, cwd: mac.daemons });
  assert.equal(run.status, 0, run.stdout + run.stderr);
  assert.ok(mac.log().some((line) => line.includes(`--plist ${plistOf(mac)}`)), mac.log().join("\n"));
});

macTest("root does not touch an agent: one child that is its user does, and its answer is passed on", async () => {
  const { mac, file, job } = macWith("agent", { quick: false });
  await using _ = mac;
  const run = await mac.run(["--yes", "--json", "--plist", file, "default"]);
  assert.equal(run.status, 0, run.stdout + run.stderr);
  assert.equal(run.json().state, "guarded");
  assert.ok(job()!.args.includes("--run"));
  const sudos = mac.log().filter((line) => line.startsWith("0: sudo"));
  assert.deepEqual(sudos.length, 1, sudos.join("\n"));
  assert.ok(sudos[0]!.startsWith("0: sudo -n -H -u #501 "));
  assert.ok(mac.tree().filter((row) => row.startsWith("/home/zoe/")).every((row) => / 501:20 /.test(row)));
  const other = await mac.run(["--yes", "--json", "--plist", file, "default"], { as: ADA });
  assert.equal(other.status, 77, other.stdout);
});

for (const owner of [ROOT, ADA]) {
  macTest(
    `a user's folder of login agents that is ${owner.name}'s is given back to him, not his plist to its owner`,
    async () => {
      const { mac, file, as, job } = macWith("agent");
      await using _ = mac;
      mac.own(mac.agents, owner);
      const { pid } = job()!;
      for (const role of ["--check", "--install"]) {
        const run = await mac.run([role, "--yes", "--json", "default"], { as });
        assert.deepEqual([run.status, run.json().plist ?? file, job()!.pid], [1, file, pid], run.stdout);
        const because = `its folder belongs to user ${owner.uid}, and it is a login agent of user ${ZOE.uid}`;
        const blocker = run.json().blockers.find((b: { because: string }) => b.because.includes(because));
        assert.equal(blocker?.hint, `sudo chown ${ZOE.uid} ${mac.agents}`, run.stdout);
      }
      mac.own(mac.agents, ZOE);
      assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    },
  );
}

macTest("an agent of the job's user for the same instance is seen by root and by the user alike", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  mac.load("gui/501", mac.agent("default", fixture(mac, "lima-2.2-agent")));
  for (const as of [ROOT, ZOE]) {
    for (const role of ["--install", "--check"]) {
      const run = await mac.run([role, "--yes", "default"], { as });
      assert.equal(run.status, 1, `${as.name} ${role}: ${run.stdout}`);
      assert.match(run.stdout, /starts at boot and at login/);
    }
  }
  const read = mac.log().filter((line) => line.includes("LaunchAgents") && line.startsWith("0: "));
  assert.ok(read.every((line) => line.startsWith("0: sudo -n -H -u #501")), read.join("\n"));
  const decided = await mac.run(["--yes", "--plist", plistOf(mac), "default"]);
  assert.equal(decided.status, 0, decided.stdout);
});

macTest("a folder of login agents that is not there has none; one that cannot be listed may have any: 75", async () => {
  for (const [what, status] of [["closed", 75], ["hidden", 75], ["absent", 0], ["no Library", 0]] as const) {
    const { mac } = macWith("daemon", { quick: false });
    await using _ = mac;
    const library = `${mac.root}/home/zoe/Library`;
    Deno.removeSync(library, { recursive: true });
    if (what !== "no Library") mac.folder(library, ZOE);
    if (what === "closed") mac.folder(`${library}/LaunchAgents`, ZOE, 0o000);
    if (what === "hidden") Deno.chmodSync(library, 0o000);
    const run = await mac.run(["--yes", "default"]);
    assert.equal(run.status, status, `${what}: ${run.stdout}`);
    if (status === 75) assert.match(run.stdout, /Cannot look into .*LaunchAgents: .*\(hint: sudo -H -u zoe ls -led /);
  }
});

macTest(
  "a user whose home is not there has no login agents; one whose home is closed or not mounted may have any",
  async () => {
    for (const [home, status] of [["none", 0], ["closed", 75]] as const) {
      const { mac, file, text } = macWith("daemon", { quick: false });
      await using _ = mac;
      mac.folder(`${mac.root}/home/closed`, ADA, 0o700);
      const users = Deno.readTextFileSync(`${mac.state}/users`);
      mac.write(`${mac.state}/users`, users.replace(`${mac.home}:`, `${mac.root}/home/${home}:`));
      const limaHome = `<key>LIMA_HOME</key><string>${mac.home}/.lima</string>`;
      const variables = `<key>EnvironmentVariables</key><dict>${limaHome}</dict><key>RunAtLoad`;
      mac.write(file, text.replace("<key>RunAtLoad", variables));
      const run = await mac.run(["--yes", "default"]);
      assert.equal(run.status, status, run.stdout);
      if (status === 0) assert.equal((await mac.run(["--check", "default"])).status, 0);
    }
  },
);

macTest("a login agent that is not Lima's, beside a daemon: what is said is no command of Lima's", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  const agents = `${mac.root}/home/zoe/Library/LaunchAgents`;
  mac.write(`${agents}/my.vm.plist`, fixture(mac, "lima-2.2-agent").replaceAll(AGENT, "my.vm"), ZOE);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1, run.stdout);
  assert.match(
    run.stdout,
    /starts at boot and at login: .*my\.vm\.plist \(hint: remove one of them; or --plist FILE decides\)/,
  );
});

// Another plist that starts the instance, or may; who looks; the status, and what is said.
interface Beside {
  readonly what: string;
  readonly kind: "daemon" | "agent";
  readonly put: (mac: FakeMac) => void;
  readonly as: readonly Person[];
  readonly status: number;
  readonly words: RegExp;
}
const mine = (mac: FakeMac, text: string) => {
  mac.write(`${mac.agents}/my.vm.plist`, text.replaceAll(AGENT, "my.vm"), ZOE);
};
const binary = (mac: FakeMac) => `bplist00${fixture(mac, "lima-2.2-agent")}`;
const noName = (mac: FakeMac) => fixture(mac, "lima-2.2-agent").replace(/\s*<string>default<\/string>/, "");
const MAY_START = /Cannot tell whether \S+my\.vm\.plist starts default too.*plutil -convert xml1 \S+my\.vm\.plist/;
const BESIDE: Beside[] = [
  {
    what: "a binary one",
    kind: "daemon",
    put: (mac) => mine(mac, binary(mac)),
    as: [ROOT, ZOE],
    status: 75,
    words: MAY_START,
  },
  {
    what: "a binary one under Lima's name",
    kind: "daemon",
    put: (mac) => mac.agent("default", binary(mac)),
    as: [ROOT, ZOE],
    status: 1,
    words: /starts at boot and at login/,
  },
  {
    what: "limactl without a name",
    kind: "daemon",
    put: (mac) => mine(mac, noName(mac)),
    as: [ROOT, ZOE],
    status: 1,
    words: /starts at boot and at login/,
  },
  {
    what: "one of all users",
    kind: "daemon",
    put: (mac) => {
      mac.folder(`${mac.system}/Library/LaunchAgents`);
      mac.write(`${mac.system}/Library/LaunchAgents/my.vm.plist`, fixture(mac, "lima-2.2-agent"));
    },
    as: [ROOT, ZOE],
    status: 1,
    words: /starts at boot and at login/,
  },
  {
    what: "a daemon that this user may not read",
    kind: "agent",
    put: (mac) => mac.write(`${mac.daemons}/my.vm.plist`, fixture(mac, "lima-2.2-daemon"), ROOT, 0o600),
    as: [ZOE],
    status: 0,
    words: /note: \S+my\.vm\.plist may not be read: whether it starts default too is not known/,
  },
  {
    what: "an agent that its user may not read",
    kind: "daemon",
    put: (mac) => mac.write(`${mac.agents}/my.vm.plist`, fixture(mac, "lima-2.2-agent"), ROOT, 0o600),
    as: [ROOT, ZOE],
    status: 0,
    words: /note: \S+my\.vm\.plist may not be read: whether it starts default too is not known/,
  },
  {
    what: "a daemon of another user for an instance of that name",
    kind: "agent",
    put: (mac) => mac.daemon("default", fixture(mac, "lima-2.2-daemon").replace("<string>zoe<", "<string>ada<")),
    as: [ZOE],
    status: 0,
    words: /default: guarded/,
  },
];
for (const { what, kind, put, as, status, words } of BESIDE) {
  macTest(`beside a guarded ${kind}, ${what}: --check and --install say ${status}`, async () => {
    const { mac, as: owner } = macWith(kind);
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"], { as: owner })).status, 0);
    put(mac);
    for (const person of as) {
      for (const role of ["--check", "--install"]) {
        const run = await mac.run([role, "--yes", "default"], { as: person });
        assert.equal(run.status, status, `${person.name} ${role}: ${run.stdout}`);
        assert.match(run.stdout, words);
      }
    }
  });
}

macTest("root's --all is the daemons: the caller's HOME has no part in it", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  const agents = `${mac.root}/home/ada/Library/LaunchAgents`;
  mac.write(
    `${agents}/io.lima-vm.autostart.ada.plist`,
    fixture(mac, "lima-2.2-agent").replaceAll("default", "ada"),
    ADA,
  );
  const run = await mac.run(["--yes", "--all", "--json"], { env: { HOME: `${mac.root}/home/ada` } });
  assert.deepEqual(JSON.parse(run.stdout).instances.map((i: { name: string }) => i.name), ["default"]);
});

macTest("--sign signs an agent's guard as well, before it is placed, also one that is there already", async () => {
  const { mac, as, guard } = macWith("agent");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
  const unsigned = Deno.readTextFileSync(guard);
  mac.forget();
  const run = await mac.run(["--yes", "--sign", "Dev ID", "default"], { as });
  assert.equal(run.status, 0, run.stdout + run.stderr);
  assert.equal(mac.log().filter((line) => line.startsWith("501: codesign --force --sign Dev ID ")).length, 1);
  assert.equal(Deno.readTextFileSync(guard), `${unsigned}# signed as org.lima-guard\n`);
});

macTest("codesign that signs nothing is a refusal with its words, and leaves no copy", async () => {
  for (const kind of ["daemon", "agent"] as const) {
    const { mac, as } = macWith(kind);
    await using _ = mac;
    const before = mac.tree();
    mac.fault("force:1 1");
    const by = kind === "daemon" ? ADA : as;
    const run = await mac.run(["--yes", "--json", "--sign", "No such ID", "default"], { as: by });
    assert.deepEqual([run.status, run.json().state], [1, kind === "daemon" ? "refused" : "rolled back"], run.stdout);
    assert.match(run.json().blockers[0].because, /codesign: status 1$/);
    assert.deepEqual(mac.tree(), before);
  }
});

macTest(
  "--sign by root himself finds no identity, which is said, and the old job is in force; ad hoc needs none",
  async () => {
    const { mac, text, file, job } = macWith("daemon");
    await using _ = mac;
    const before = mac.tree();
    const run = await mac.run(["--yes", "--json", "--sign", "Dev ID", "default"]);
    assert.deepEqual([run.status, run.json().state], [1, "rolled back"], run.stdout);
    assert.match(run.json().blockers[0].because, /codesign: status 1: Dev ID: no identity found$/);
    assert.deepEqual([mac.tree(), Deno.readTextFileSync(file)], [before, text]);
    const adHoc = await mac.run(["--yes", "--sign", "-", "default"]);
    assert.equal(adHoc.status, 0, adHoc.stdout);
    assert.ok(job()!.args.includes("--run"));
  },
);

macTest("--sign signs a private copy as the caller, with one identifier, before it is placed", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  const run = await mac.run(["--yes", "--sign", "Dev ID", "default"], { as: ADA });
  assert.equal(run.status, 0, run.stdout + run.stderr);
  const signed = mac.log().filter((line) => line.includes("codesign --force"));
  assert.equal(signed.length, 1);
  assert.match(signed[0]!, /^502: codesign --force --sign Dev ID --identifier org\.lima-guard \/.*\/home\/ada\//);
  assert.ok(Deno.readTextFileSync(mac.guard).includes("# signed as org.lima-guard"));
  assert.ok(!mac.tree().some((row) => /home\/ada\/lima-guard-/.test(row)), "the copy is gone");
  assert.match(VERSION, /\d/);
});
