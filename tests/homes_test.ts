/** Where instances are found: the home that was named, ~/.lima, and the homes of other programs. */

import assert from "node:assert/strict";
import { dirname } from "node:path";
import os from "node:os";
import {
  eventually,
  runGuard,
  spawnGuard,
  startAgent,
  startBystander,
  startQemuOrphan,
  tempLimaHome,
} from "./helpers/mod.ts";
import type { Home } from "./helpers/mod.ts";
import { guardWith } from "./helpers/guard_with.ts";

/** An instance in another home of the same user. */
function instanceIn(home: Home, limaHome: string, name: string, yaml = "images: []\n"): string {
  Deno.mkdirSync(`${limaHome}/${name}`, { recursive: true });
  Deno.writeTextFileSync(`${limaHome}/${name}/lima.yaml`, yaml);
  assert.ok(limaHome.startsWith(home.root));
  return `${limaHome}/${name}`;
}

const BARE = { LIMA_HOME: "" };

Deno.test("an instance of Colima's home is found by its name, with one line that says where", async () => {
  await using home = await tempLimaHome();
  instanceIn(home, `${home.user}/.colima/_lima`, "colima");
  const { status, stderr, json } = await runGuard(home, ["--pre", "--json", "colima"], { env: BARE });
  assert.deepEqual([status, json().instances[0].state], [0, "clear"]);
  assert.match(stderr, new RegExp(`found in ${home.user}/\\.colima/_lima\n`));
  // A ~/.lima in which nothing is changes nothing.
  for (const prepare of [() => {}, () => Deno.mkdirSync(`${home.user}/.lima`)]) {
    prepare();
    const all = await runGuard(home, ["--status", "--json"], { env: BARE });
    assert.deepEqual(all.json().instances.map((i: { name: string }) => i.name), ["colima"]);
  }
});

Deno.test("Colima's own rule: COLIMA_HOME where it exists, else XDG_CONFIG_HOME without ~/.colima", async () => {
  await using home = await tempLimaHome();
  instanceIn(home, `${home.user}/xdg/colima/_lima`, "colima-work");
  const env = { ...BARE, COLIMA_HOME: `${home.user}/none`, XDG_CONFIG_HOME: `${home.user}/xdg` };
  assert.equal((await runGuard(home, ["--pre", "colima-work"], { env })).status, 0);
  Deno.mkdirSync(`${home.user}/.colima`);
  assert.equal((await runGuard(home, ["--pre", "colima-work"], { env })).status, 66);
  assert.equal(
    (await runGuard(home, ["--pre", "colima-work"], { env: { ...env, COLIMA_HOME: `${home.user}/xdg/colima` } }))
      .status,
    0,
  );
});

Deno.test("several homes with an instance of this name are a usage error that names them", async () => {
  await using home = await tempLimaHome();
  const other = `${home.user}/Library/Application Support/rancher-desktop/lima`;
  instanceIn(home, `${home.user}/.colima/_lima`, "0");
  instanceIn(home, other, "0");
  const { status, stdout } = await runGuard(home, ["--pre", "0"], { env: BARE });
  assert.equal(status, 64);
  assert.match(stdout, new RegExp(`lima-guard --pre --lima-home '${other}' 0`));
  instanceIn(home, `${home.user}/.lima`, "0");
  const own = await runGuard(home, ["--pre", "0"], { env: BARE });
  assert.deepEqual([own.status, own.stderr], [0, ""], "~/.lima comes first");
});

Deno.test("instances of one name in two homes are listed with their homes", async () => {
  await using home = await tempLimaHome();
  const homes = [`${home.user}/.lima`, `${home.user}/.colima/_lima`];
  for (const path of homes) instanceIn(home, path, "default");
  instanceIn(home, homes[0]!, "k3s");
  const { json } = await runGuard(home, ["--status", "--json"], { env: BARE });
  const found = json().instances.map((i: { name: string; home: string }) => [i.name, i.home]);
  assert.deepEqual(found, [["default", homes[0]], ["k3s", homes[0]], ["default", homes[1]]]);
  for (const args of [["--status"], ["--stop", "--all"]]) {
    const { stdout } = await runGuard(home, args, { env: BARE });
    for (const path of homes) assert.match(stdout, new RegExp(`^default \\(${path}\\)`, "m"), stdout);
    assert.match(stdout, /^k3s\b(?! \()/m);
  }
});

Deno.test("an explicit home is the only one; its ~/ is expanded, and one that is not there is 66", async () => {
  await using home = await tempLimaHome();
  instanceIn(home, `${home.user}/.colima/_lima`, "colima");
  for (
    const [args, expected] of [
      [["--pre", "colima", "--lima-home", "~/.colima/_lima"], 0],
      [["--pre", "colima", "--lima-home", "~/none"], 66],
      [["--pre", "colima", "--lima-home", "none"], 66],
      [["--stop", "--all", "--lima-home", "none"], 66],
      [["--status", "--lima-home", "~/none"], 66],
    ] as const
  ) {
    assert.equal((await runGuard(home, [...args], { env: BARE })).status, expected, args.join(" "));
  }
});

Deno.test("a ~/.lima that is a link to nowhere says where it points", async () => {
  await using home = await tempLimaHome();
  Deno.symlinkSync(`${home.root}/VOL`, `${home.user}/.lima`);
  for (const args of [["--pre", "k3s"], ["--status"]]) {
    const { status, stdout, stderr } = await runGuard(home, args, { env: BARE });
    assert.equal(status, 66);
    assert.match(stdout + stderr, /a link to .*\/VOL, which is not there/);
  }
});

Deno.test("no instance anywhere is 66, and says where was looked", async () => {
  await using home = await tempLimaHome();
  Deno.mkdirSync(`${home.user}/.lima/_config`, { recursive: true });
  const env = { ...BARE, HOME: home.user };
  for (const args of [["--status"], ["--pre", "--all"]]) {
    const { status, stderr } = await runGuard(home, args, { env });
    assert.equal(status, 66, args.join(" "));
    for (const where of [".lima", ".config/colima/_lima", "rancher-desktop/lima"]) {
      assert.ok(stderr.includes(where), stderr);
    }
  }
  assert.equal((await runGuard(home, ["--status", "--lima-home", "~/.lima"], { env })).status, 0, "the home is there");
});

Deno.test("a host agent lives whose lima.yaml is gone: no answer is 0 or 66, and each says how it can be ended", async () => {
  await using home = await tempLimaHome({ name: "home/.lima" });
  const k3s = home.instance("k3s");
  await using agent = await startAgent(k3s);
  k3s.remove("lima.yaml");
  const rows: [string[], Record<string, string>][] = [
    [["--status"], BARE],
    [["--pre", "--all"], BARE],
    [["--stop", "--all"], {}],
    [["--stop", "k3s"], {}],
    [["--pre", "k3s"], {}],
    [["--status", "k3s"], BARE],
  ];
  for (const others of [0, 1]) {
    if (others > 0) home.instance("other");
    for (const [args, env] of rows) {
      const { status, json, stderr } = await runGuard(home, [...args, "--json"], { env });
      assert.equal(status, 1, `${args}: ${stderr}`);
      const report = json().instances.find((one: { name: string }) => one.name === "k3s");
      assert.match(report.blockers[0].because, new RegExp(`PID ${agent.pid} .* lives, and its lima.yaml is gone`));
      assert.match(report.blockers[0].hint, new RegExp(`^ps .* ${agent.pid}; .*: kill ${agent.pid}$`));
    }
  }
  assert.ok(agent.isAlive());
});

for (const what of ["directory", "LIMA_HOME"] as const) {
  Deno.test(`a host agent lives whose ${what} is gone: no answer is 0 or 66`, async () => {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s");
    await using agent = await startAgent(k3s);
    Deno.renameSync(what === "directory" ? k3s.dir : home.lima, `${home.root}/away`);
    for (const args of [["--status"], ["--pre"], ["--stop"]]) {
      const { status, json, stdout } = await runGuard(home, [...args, "--json", "k3s"]);
      const [report] = json().instances;
      assert.deepEqual([status, report.name, report.state], [1, "k3s", "running"], stdout);
      assert.match(report.blockers[0].because, new RegExp(`PID ${agent.pid} .* lives, and its lima.yaml is gone`));
    }
    assert.equal((await runGuard(home, ["--status", "other"])).status, 66);
    assert.ok(agent.isAlive());
    agent.signal("SIGKILL");
    await agent.status;
    assert.equal((await runGuard(home, ["--stop", "k3s"])).status, 66);
  });
}

Deno.test("lima.yaml is gone, and whether anything lives cannot be found out: unknown, no 66", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  k3s.remove("lima.yaml");
  const how = guardWith({ programs: { ps: { does: "answer", stderr: "no", code: 2 } } });
  for (const name of ["k3s", "nothing"]) {
    for (const role of ["--status", "--pre", "--stop"]) {
      const { status, json, stdout } = await runGuard(home, [role, "--json", name], how);
      const [report] = json().instances;
      assert.deepEqual([status, report.name, report.state], [75, name, "unknown"], stdout);
      assert.match(report.blockers[0].because, /ps failed with status 2/);
    }
  }
});

Deno.test("a QEMU lives whose host agent and lima.yaml are gone: an orphan, never 0 or 66", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using orphan = await startQemuOrphan(k3s);
  k3s.remove("lima.yaml");
  for (const args of [["--status", "k3s"], ["--pre", "k3s"], ["--stop", "k3s"], ["--stop", "--all"]]) {
    const { status, json, stderr } = await runGuard(home, [...args, "--json"]);
    const [report] = json().instances;
    assert.deepEqual([status, report.state], [1, "orphan"], `${args}: ${stderr}`);
    assert.match(report.blockers[0].because, /still lives, and its lima\.yaml is gone/);
  }
  assert.ok(orphan.isAlive());
});

for (
  const [what, status, program, ...rest] of [
    ["a search for a host agent", 0, "/usr/bin/grep", "-r"],
    ["a host agent of a renamed limactl", 1, "limactl-2.1", "--debug"],
  ] as const
) {
  Deno.test(`--all, and ${what} runs: ${status}`, async () => {
    await using home = await tempLimaHome();
    const dir = `${dirname(instanceIn(home, `${home.user}/.lima`, "a"))}/gone`;
    const command = [program, ...rest, "hostagent", "--pidfile", `${dir}/ha.pid`, "--socket", `${dir}/ha.sock`, "gone"];
    await using _process = await startBystander(home, { command });
    const ran = await runGuard(home, ["--stop", "--all"], { env: BARE });
    assert.equal(ran.status, status, ran.stdout);
  });
}

// A list of processes that is a part of the list, or has a row that cannot be read, does not show that none lives.
const HALF_LISTS = { "without lima-guard": "^.*guard_twisted.*$", "with a row that cannot be read": "^ *1 " };
for (const [what, pattern] of Object.entries(HALF_LISTS)) {
  Deno.test(`a list of all processes ${what}: whether a host agent lives is unknown, 75`, async () => {
    await using home = await tempLimaHome();
    instanceIn(home, `${home.user}/.lima`, "a");
    const twisted = guardWith({ programs: { ps: { does: "lie", pattern, by: "" } } });
    for (const args of [["--status"], ["--pre", "--all"], ["--stop", "--all"]]) {
      const { status, stdout } = await runGuard(home, args, { ...twisted, env: { ...twisted.env, ...BARE } });
      assert.equal(status, 75, `${args}: ${stdout}`);
      assert.match(stdout, /: ps: ps (did not list|printed rows)/);
    }
  });
}

Deno.test("an instance that was started through a link is served once by --all, and not found beside itself", async () => {
  await using home = await tempLimaHome({ name: "home/.lima" });
  const k3s = home.instance("k3s");
  Deno.symlinkSync(k3s.dir, `${home.lima}/alias`);
  await using _ = await startAgent(Object.create(k3s, { name: { value: "alias" } }));
  for (const args of [["--status"], ["--pre", "--all"], ["--stop", "--all"]]) {
    const { status, json, stdout } = await runGuard(home, [...args, "--json"], { env: BARE });
    assert.deepEqual([status, json().instances.length, json().instances[0].name], [0, 1, "k3s"], stdout);
  }
});

for (const [what, pattern] of Object.entries(HALF_LISTS)) {
  Deno.test(`a list of all processes ${what}: what it proves to live in another home is stopped all the same, and 75`, async () => {
    await using home = await tempLimaHome();
    await using _ = await startAgent(home.instance("k3s"));
    const twisted = guardWith({ programs: { ps: { does: "lie", pattern, by: "" } } });
    const { status, stdout } = await runGuard(home, ["--stop", "--all", "--timeout", "20"], {
      ...twisted,
      env: { ...twisted.env, ...BARE },
    });
    assert.equal(status, 75, stdout);
    assert.match(stdout, /^k3s: stopped gracefully/m);
  });
}

Deno.test("another program's home cannot be listed: --all serves the others, and is not 0", async () => {
  await using home = await tempLimaHome();
  instanceIn(home, `${home.user}/.lima`, "a");
  Deno.mkdirSync(`${home.user}/.colima`);
  const loop = `${home.user}/.colima/_lima`;
  Deno.symlinkSync(loop, loop);
  const { status, stdout } = await runGuard(home, ["--stop", "--all"], { env: BARE });
  assert.equal(status, 75, stdout);
  assert.match(stdout, /^a: already stopped$/m);
  assert.match(stdout, new RegExp(`blocked: ${loop}: .*symbolic links.*hint: ls -ld ${loop}`));
});

Deno.test("one home under two names is served once, and a link to an instance is named for --all", async () => {
  await using home = await tempLimaHome();
  const dir = instanceIn(home, `${home.user}/.lima`, "k3s");
  Deno.symlinkSync(dir, `${home.user}/.lima/other`);
  Deno.mkdirSync(`${home.user}/.colima`);
  Deno.symlinkSync(`${home.user}/.lima`, `${home.user}/.colima/_lima`);
  const { status, json, stderr } = await runGuard(home, ["--status", "--json"], { env: BARE });
  assert.deepEqual([status, json().instances.map((i: { name: string }) => i.name)], [0, ["k3s"]]);
  assert.match(stderr, /other: .*\/\.lima\/other is a link, which --all and Lima's own list leave out/);
});

Deno.test("a link to an instance: the --run that supervises it is seen by that name too, and stopped", async () => {
  await using home = await tempLimaHome();
  Deno.symlinkSync(home.instance("k3s").dir, `${home.lima}/alias`);
  await using guard = spawnGuard(home, ["--run", "k3s", "--", home.limactl, "start", "k3s", "--foreground"]);
  await guard.waitForLine(/Running after/);
  const seen = (await runGuard(home, ["--status", "alias", "--json"])).json().instances[0];
  assert.deepEqual([seen.supervisor, seen.starts], [guard.pid, 1]);
  const pre = await runGuard(home, ["--pre", "alias"]);
  assert.match(pre.stdout, new RegExp(`^alias: running: lima-guard --run ${guard.pid} supervises it`));
  const { status, stdout } = await runGuard(home, ["--stop", "alias"]);
  assert.deepEqual([status, (await guard.result()).status], [0, 0], stdout);
});

Deno.test("what an old Colima left in ~/.lima, beside the instance of today: a note at the old one only", async () => {
  await using home = await tempLimaHome();
  instanceIn(home, `${home.user}/.lima`, "colima");
  const today = instanceIn(home, `${home.user}/.colima/_lima`, "colima");
  for (const [limaHome, isNoted] of [["~/.lima", true], ["~/.colima/_lima", false]] as const) {
    const args = ["--status", "--json", "--lima-home", limaHome, "colima"];
    const [report] = (await runGuard(home, args, { env: BARE })).json().instances;
    const reasons = report.notes.map((note: { because: string }) => note.because);
    assert.equal(reasons.includes(`Colima before 0.6 left it; the one of today is ${today}`), isNoted, limaHome);
  }
});

const LABEL = { XPC_SERVICE_NAME: "io.lima-vm.daemon.k3s" };

Deno.test("a volume behind ~/.lima that comes late: lock and journal have the real directory, and --stop stops it", async () => {
  await using home = await tempLimaHome();
  const volume = `${home.root}/VOL`;
  Deno.symlinkSync(volume, `${home.user}/.lima`);
  const env = { ...BARE, ...LABEL };
  await using guard = spawnGuard(home, ["--run", "k3s", "--", "sleep", "60"], { env });
  await guard.waitForLine(/looks again in 5 s/);
  const dir = instanceIn(home, volume, "k3s");
  await guard.waitForLine(/started sleep/);
  const first = (file: string) => JSON.parse(Deno.readTextFileSync(`${dir}/${file}`).split("\n", 1)[0]!);
  await eventually(() =>
    assert.deepEqual([first("lima-guard.jsonl").event, first("lima-guard.jsonl").dir], ["start", dir])
  );
  assert.deepEqual([first("lima-guard.lock").dir, first("lima-guard.lock").pid], [dir, guard.pid]);
  const shown = (await runGuard(home, ["--status", "--json", "k3s"], { env: BARE })).json().instances[0];
  assert.equal(shown.supervisor, guard.pid);
  const stopped = await runGuard(home, ["--stop", "k3s"], { env: BARE });
  assert.equal(stopped.status, 0, stopped.stderr);
  assert.equal((await guard.result()).status, 0);
});

Deno.test("an additional disk whose volume is missing is waited for under launchd; elsewhere it is 75", async () => {
  await using home = await tempLimaHome();
  home.instance("k3s", { yaml: "additionalDisks:\n- name: data\n" });
  const args = ["--run", "k3s", "--", "false"];
  const elsewhere = await runGuard(home, args);
  assert.equal(elsewhere.status, 75, elsewhere.stderr);
  assert.match(elsewhere.stderr, /additional disk data is not there/);
  await using waiting = spawnGuard(home, args, { env: LABEL });
  await waiting.waitForLine(/looks again in 5 s/);
  home.disk("data");
  assert.equal((await waiting.result()).status, 1);
  assert.match(waiting.stderr, /started false/);
});

const NO_HOME = { LIMA_HOME: "", HOME: "", XPC_SERVICE_NAME: "io.lima-vm.daemon.k3s-not-here" };

Deno.test("without HOME it is the one of the user database; where there is none it is 75", async () => {
  await using home = await tempLimaHome();
  const own = os.userInfo().homedir;
  const shown = await runGuard(home, ["--status", "k3s-not-here"], { env: NO_HOME });
  assert.equal(shown.status, 66, shown.stderr);
  assert.ok((shown.stdout + shown.stderr).includes(own), shown.stdout);
  const program = Deno.build.os === "darwin" ? "id" : "getent";
  const twist = guardWith({ programs: { [program]: { does: "answer", code: 2 } } });
  const unknown = await runGuard(home, ["--status", "k3s-not-here"], { ...twist, env: { ...twist.env, ...NO_HOME } });
  assert.equal(unknown.status, 75, unknown.stderr);
  assert.match(unknown.stderr, /nor HOME is set/);
});

Deno.test("without HOME: what --run starts has it too", async () => {
  await using home = await tempLimaHome();
  home.instance("k3s");
  const command = ["/bin/sh", "-c", 'printf %s "$HOME"; exit 1'];
  const { stdout } = await runGuard(home, ["--run", "k3s", "--", ...command], {
    env: { ...NO_HOME, LIMA_HOME: home.lima },
  });
  assert.equal(stdout, os.userInfo().homedir);
});
